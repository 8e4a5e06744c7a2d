"""What a tile store says of itself: its files, and `store.json`."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from trainer.errors import UsageError

FORMAT_VERSION = 1
TILES, INDEX, META, REJECTED = "tiles.npy", "index.parquet", "store.json", "rejected.csv"


@dataclass(frozen=True)
class Meta:
    """What store.json says. `counts`: tiles by class; `rejected`: files by kind of reason.

    What has a default is not in stores that were packed before it was thought of.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    format_version: int
    classes: list[str]
    tile_size: Annotated[list[int], Field(min_length=2, max_length=2)]  # height, width
    mpp: float | None  # microns per pixel of the stored tiles
    tiles: int
    counts: dict[str, int]
    duplicates: int
    rejected: dict[str, int]
    fingerprint: str
    made: dict[str, Any]  # the source and the options it was made from, when, and by which versions
    without_tiles: dict[str, int] = field(default_factory=dict)  # classes that gave no tile: the files they offered
    ignored: list[str] = field(default_factory=list)  # columns of the manifest that nothing was done with
    sha256: dict[str, str | None] = field(default_factory=dict)  # of the other small files, and of all else in this one

    def sealed(self, directory: Path) -> "Meta":
        """The same with the sha256 of this account and of the small files that lie in `directory`."""
        return replace(self, sha256=checksums(asdict(self), directory))

    def write(self, directory: Path) -> None:
        """Write store.json."""
        (directory / META).write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", "utf-8")

    @classmethod
    def read(cls, path: Path) -> "Meta":
        """Read store.json of the store at `path`; UsageError if there is none that this version reads."""
        found = read_account(path)
        version = found.get("format_version") if isinstance(found, dict) else None
        if version != FORMAT_VERSION:
            raise UsageError(
                f"{path} has store format {version}, and this version reads format {FORMAT_VERSION}: pack it again"
            )
        try:
            return TypeAdapter(cls).validate_python(found)
        except ValidationError as error:
            first = error.errors()[0]
            what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise damaged(path, f"{META} is not as it was written ({what})") from None


def read_account(path: Path) -> Any:
    """What store.json of the store at `path` holds; UsageError if it cannot be read."""
    try:
        return json.loads((path / META).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{path} is no tile store: it has no {META}; make one with `python -m trainer prepare SOURCE {path}`"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"{META} cannot be read ({error})") from None


def checksums(account: dict[str, Any], directory: Path) -> dict[str, str | None]:
    """The sha256 of each small file, null for one that cannot be read; of store.json that of its content less these."""
    own = json.dumps({key: value for key, value in account.items() if key != "sha256"}, sort_keys=True)
    return {
        META: hashlib.sha256(own.encode()).hexdigest(),
        **{name: _sha256(directory / name) for name in (INDEX, REJECTED)},
    }


def _sha256(file: Path) -> str | None:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return None


def damaged(path: Path, what: str) -> UsageError:
    """What to raise where a store is not as it was written."""
    return UsageError(
        f"the tile store {path} is damaged: {what}. Pack it again, or copy it again from where it is whole"
    )
