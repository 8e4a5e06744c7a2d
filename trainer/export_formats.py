"""How a network is written for other programs, and read again: a writer and a reader for each format.

Whatever the format, the network takes normalised images (n, 3, S, S) float32 and gives (n, classes) float32 logits;
its card says how tiles become such images, and what it was trained on.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.errors import UsageError

Card = dict[str, Any]
"""What travels with the weights: JSON values by name."""
Run = Callable[[Tensor], Tensor]
CARD = "tissuegrid"
"""The key or name under which a file holds its card, as JSON."""
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
EXAMPLE_TILES = 2


@dataclass(frozen=True)
class Format:
    """A way to write a network."""

    suffix: str
    write: Callable[[nn.Sequential, Card, int, Path], None]
    """Given the network, its card, the side S of its input in px, and the file."""
    read: Callable[[Path], tuple[Run, Card]]
    """As the program would that gets the file: what computes logits, and the card."""
    check: Callable[[], None] = lambda: None
    """Raises a UsageError where packages are missing."""


def _write_safetensors(model: nn.Sequential, card: Card, _: int, file: Path) -> None:
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    # Each entry of the card by its own name as well, for programs that show a file's metadata.
    entries = {key: value if isinstance(value, str) else json.dumps(value) for key, value in card.items()}
    save_file(tensors, file, {**entries, "format": "pt", CARD: json.dumps(card)})


def _read_safetensors(file: Path) -> tuple[Run, Card]:
    """With torchvision's own ResNet50, and nothing of ours."""
    from safetensors import safe_open
    from safetensors.torch import load_file
    from torchvision.models import resnet50

    with safe_open(file, "pt") as opened:
        card = json.loads(opened.metadata()[CARD])
    model = resnet50(num_classes=len(card["classes"])).eval()
    model.load_state_dict(load_file(file))
    return model, card


def _write_torch_export(model: nn.Sequential, card: Card, side: int, file: Path) -> None:
    with _quiet():
        program = torch.export.export(model, (_example(side),), dynamic_shapes=({0: torch.export.Dim("tiles")},))
        torch.export.save(program, file, extra_files={f"{CARD}.json": json.dumps(card)})


def _read_torch_export(file: Path) -> tuple[Run, Card]:
    extra = {f"{CARD}.json": ""}
    with _quiet():
        program = torch.export.load(file, extra_files=extra)
    return program.module(), json.loads(extra[f"{CARD}.json"])


def _check_onnx() -> None:
    if missing := [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]:
        raise UsageError(
            f"--format onnx needs {', '.join(missing)}, not installed here: pip install {' '.join(ONNX_PACKAGES)}"
        )


def _write_onnx(model: nn.Sequential, card: Card, side: int, file: Path) -> None:
    import onnx

    with _quiet():
        program = torch.onnx.export(
            model,
            (_example(side),),
            input_names=["tiles"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("tiles")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None, "it was not asked to write a file"
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {CARD: json.dumps(card)})
    onnx.checker.check_model(proto)
    onnx.save(proto, file)


def _read_onnx(file: Path) -> tuple[Run, Card]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: it warns of any machine whose devices it does not know
    session = onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
    card = json.loads(session.get_modelmeta().custom_metadata_map[CARD])
    return lambda images: torch.from_numpy(session.run(["logits"], {"tiles": images.numpy()})[0]), card


def _example(side: int) -> Tensor:
    return torch.zeros(EXAMPLE_TILES, 3, side, side)


@contextmanager
def _quiet() -> Iterator[None]:
    """What torch's exporters say of their own workings helps nobody here: what comes out is compared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


FORMATS = {
    "safetensors": Format(".safetensors", _write_safetensors, _read_safetensors),
    "onnx": Format(".onnx", _write_onnx, _read_onnx, _check_onnx),
    "torch.export": Format(".pt2", _write_torch_export, _read_torch_export),
}
