"""The types of options: which values each takes, and what is said of others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qs

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from trainer.config_errors import LIMITS, SECRET

HUB_WEIGHTS = ("imagenet1k_v1", "imagenet1k_v2")

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Jitter = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


def _absolute(path: Path) -> Path:
    """Workers run in directories of their own, so every path is made absolute where it is read."""
    return path.expanduser().absolute()


def _weights(name: str) -> str:
    return name if name in (*HUB_WEIGHTS, "random") else str(_absolute(Path(name)))


def _text(pattern: str, words: str) -> BeforeValidator:
    """Text of a pattern that is explained in words."""

    def check(value: object) -> object:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(f"should be {words}")
        return value

    return BeforeValidator(check)


def _elastic(text: str) -> str:
    least, most = (int(part) for part in text.split(":"))
    if not 1 <= least <= most:
        raise ValueError("should be MIN:MAX with 1 <= MIN <= MAX")
    return text


def _run_name(name: str) -> str:
    if name == "weights":
        raise ValueError("should be another name: weights is where frozen weights are kept")
    return name


def _external(stores: dict[str, Path]) -> dict[str, Path]:
    if clash := sorted({"train", "val", "test"} & set(stores)):
        raise ValueError(f"an external store may not be called {clash[0]}")
    return stores


def _ordered(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError(LIMITS)
    return limits


def _mirror(uri: str) -> str:
    """A URI goes into config.yaml and into logs: it must not hold what nobody else may know."""
    place, _, options = uri.partition("?")
    if "@" in place or re.search("key|secret|token|password|sig", " ".join(parse_qs(options)), re.IGNORECASE):
        raise PydanticCustomError(SECRET, "must hold no credentials: give them in the environment")
    if not re.match(r"[a-z][a-z0-9+.-]*://", place):
        raise ValueError("must be a URI such as s3://BUCKET/PATH or file:///FOLDER")
    return uri


Elastic = Annotated[str, _text("[0-9]{1,5}:[0-9]{1,5}", "MIN:MAX such as 2:8"), AfterValidator(_elastic)]
Duration = Annotated[str, _text("[1-9][0-9]*(s|min|h)", "a time such as 10min, 90s or 2h")]
Name = Annotated[
    str,
    _text(
        "[A-Za-z0-9][A-Za-z0-9._-]{0,99}",
        "text of letters, digits and . _ - only, at most 100, that begins with a letter or digit",
    ),
]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
RunName = Annotated[Name, AfterValidator(_run_name)]
Mirror = Annotated[str, AfterValidator(_mirror)]
Weights = Annotated[str, AfterValidator(_weights)]
ExternalStores = Annotated[dict[Name, AbsolutePath], AfterValidator(_external)]
AreaRange = Annotated[tuple[Share, Share], AfterValidator(_ordered)]
RatioRange = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]
