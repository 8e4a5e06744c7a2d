"""A folder, zip or manifest -> the files that may hold a tile, each with its label, and those that cannot.

In a folder or zip, a tile's label is the first folder under the data set's root. The root is the source itself;
where all images lie under one folder that holds folders of images, it is that folder, and so on downwards.
Two or more top folders are data sets of their own, not classes, if folders in them bear the same name and either
that name has no digit (`AC`, not `slide-07`) or a top folder is named like a split (`train`, `CRC-VAL-HE-7K`).
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from trainer.errors import UsageError
from trainer.tiles.listing import Listed, Place, list_files, list_folder, list_zip
from trainer.tiles.manifest import read_manifest

IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".webp")

_SPLIT_WORDS = {"train", "training", "val", "valid", "validation", "test", "testing", "external", "holdout"}


class TileFile(NamedTuple):
    """A file that may hold a tile; `path` is relative to the data set's root."""

    path: str
    label: str
    group: str | None
    split: str | None


class Rejected(NamedTuple):
    """A file that was not taken; `reason` is `kind: detail`."""

    path: str
    reason: str


@dataclass(frozen=True)
class Scan:
    """What a source offers; `files` in the order in which they are best read."""

    place: Place
    files: tuple[TileFile, ...]
    rejected: tuple[Rejected, ...]
    digest: str  # of names, sizes and times (zip: checksums): tells cheaply whether a source is the same

    @cached_property
    def rows(self) -> dict[str, int]:
        """Each path's row in storage order: its rank by a hash of the path.

        So the order is random, yet the same for a folder and a zip of it, and other files leave it as it is.
        """
        ranked = sorted((file.path for file in self.files), key=lambda path: hashlib.sha256(path.encode()).digest())
        return {path: row for row, path in enumerate(ranked)}


def scan(source: Path) -> Scan:
    """Look through a source without opening its images; UsageError if no tile can come from it."""
    suffix = source.suffix.lower()
    if source.is_dir():
        return _scan_tree(source, "folder", list_folder(source))
    if not source.is_file():
        raise UsageError(f"{source} does not exist: name a folder of class folders, a zip of one, or a manifest")
    if suffix == ".zip":
        return _scan_tree(source, "zip", list_zip(source))
    if suffix in (".csv", ".parquet"):
        return _scan_manifest(source)
    raise UsageError(f"{source} is neither a folder, nor a zip, nor a manifest (.csv or .parquet)")


def _scan_tree(source: Path, kind: Literal["folder", "zip"], listed: Sequence[Listed]) -> Scan:
    problems = {item.path: item.problem or _name_problem(item.path) for item in listed}
    images = [path for path, problem in problems.items() if not problem]
    root = _find_root(source, images)
    files = [path for path in images if path.startswith(root) and "/" in path[len(root) :]]
    strays = set(images).difference(files)
    rejected = [
        Rejected(_printable(path.removeprefix(root)), problem or "in no class folder")
        for path, problem in problems.items()
        if problem or path in strays
    ]
    return Scan(
        Place(kind, source, root),
        tuple(TileFile(path, path.split("/")[0], None, None) for path in (file[len(root) :] for file in files)),
        tuple(sorted(rejected)),
        _digest(sorted((_printable(item.path), item.size, item.stamp) for item in listed)),
    )


def _name_problem(path: str) -> str | None:
    if not path.lower().endswith(IMAGE_SUFFIXES):
        return f"not an image: its name ends in none of {', '.join(IMAGE_SUFFIXES)}"
    return None if _printable(path) == path else "the name is not valid UTF-8"


def _printable(path: str) -> str:
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _find_root(source: Path, images: Sequence[str]) -> str:
    """The data set's root within a source, "" or ending in "/", by the rule that this module states."""
    root = ""
    while True:
        folders = _folders(images, root)
        if not folders:
            raise UsageError(_no_classes(source, len(images)))
        if len(folders) > 1:
            _refuse_several(source, root, folders)
            return root
        ((only, inside),) = folders.items()
        if not inside:
            return root
        root = f"{root}{only}/"


def _folders(images: Sequence[str], root: str) -> dict[str, set[str]]:
    """Each folder of images directly under `root`, with the folders of images directly in it."""
    folders: dict[str, set[str]] = {}
    for path in images:
        if path.startswith(root):
            first, *deeper = path[len(root) :].split("/")
            if deeper:
                folders.setdefault(first, set()).update(deeper[:-1][:1])
    return folders


def _no_classes(source: Path, images: int) -> str:
    expected = "expected a folder for each class, with images in it (tif, tiff, png, jpg, jpeg, webp)"
    if images:
        return f"{source} holds {images:,} images but no class folders: {expected}, or a manifest"
    zips = sorted(path.name for path in source.glob("*.zip")) if source.is_dir() else []
    return f"{source} holds no images: {expected}" + (f"; found {' and '.join(zips)}: name one" if zips else "")


def _refuse_several(source: Path, root: str, folders: dict[str, set[str]]) -> None:
    times = Counter(name for inside in folders.values() for name in inside)
    shared = {name for name, count in times.items() if count > 1}
    sets = sorted(folder for folder, inside in folders.items() if inside & shared)
    like_splits = any(_SPLIT_WORDS & set(re.split(r"[^a-z]+", folder.lower())) for folder in sets)
    like_classes = any(not re.search(r"\d", name) for name in shared)
    if not (like_splits or like_classes):
        return
    where = f"{source}/{root}".rstrip("/")
    remedy = f"name one, as in {where}/{sets[0]}" if source.is_dir() else "put each into a zip of its own"
    raise UsageError(
        f"{where} holds several data sets: found {', '.join(sets[:-1])} and {sets[-1]}, each with"
        f" {', '.join(sorted(shared)[:5])}; {remedy}."
        " If these are classes with folders inside, list the tiles in a manifest (path, label)"
    )


def _scan_manifest(source: Path) -> Scan:
    rows = sorted(read_manifest(source))
    listed = list_files(source.parent, [row.path for row in rows])
    return Scan(
        Place("folder", source.parent, ""),
        tuple(TileFile(*row) for row, item in zip(rows, listed, strict=True) if not item.problem),
        tuple(Rejected(item.path, item.problem) for item in listed if item.problem),
        _digest([(*row, item.size, item.stamp) for row, item in zip(rows, listed, strict=True)]),
    )


def _digest(rows: Sequence[tuple[object, ...]]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
