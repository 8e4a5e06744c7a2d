"""A folder, zip or manifest -> the files that may hold a tile, each with its label, and those that cannot.

In a folder or zip, a tile's label is the first folder under the data set's root. The root is the source itself;
where all images lie under one folder that holds folders of images, it is that folder, and so on downwards.
A class folder holds images itself, or in folders that are named like slides: two characters or more, one of them a
digit (`slide-07`; not `AC`, `train` or `0`). A folder without images of its own is a data set rather than a class where
folders in it are named otherwise, or where it is itself named like a split (`train`, `CRC-VAL-HE-7K`).

Where labels are optional, any image below the root is taken: its label is the first folder, if it lies in one. Where
none are read, no tile has a label.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from trainer.errors import UsageError
from trainer.tiles.listing import Listed, Place, list_files, list_folder, list_zip
from trainer.tiles.manifest import Row, read_manifest
from trainer.wording import counted, joined

IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".webp")

Labels = Literal["required", "optional", "none"]
"""Whether tiles need labels, may have some, or are taken without."""

_SPLIT_WORDS = {"train", "training", "val", "valid", "validation", "test", "testing", "external", "holdout"}
_LIKE_A_SLIDE = re.compile(r"(?=.*\d).{2,}", re.DOTALL)


class TileFile(NamedTuple):
    """A file that may hold a tile; `path` is relative to the data set's root, and `label` may be unknown."""

    path: str
    label: str | None
    group: str | None
    split: str | None


class Folder(NamedTuple):
    """A folder of images directly under a root: how many lie in it itself, and which folders in it hold more."""

    images: int
    folders: frozenset[str]


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
    offered: Mapping[str, int]  # the number of files of each class, whether they can be taken or not
    ignored: tuple[str, ...]  # columns of a manifest that nothing is done with
    listing: tuple[tuple[object, ...], ...]  # of each file what is known without reading it, its stamp last

    @cached_property
    def digest(self) -> str:
        """Of names, sizes and times (zip: checksums): tells cheaply that a source is the same."""
        return digest(self.listing)

    @cached_property
    def names_digest(self) -> str:
        """Of names and sizes alone: tells cheaply that a source is another."""
        return digest([row[:-1] for row in self.listing])

    @cached_property
    def rows(self) -> dict[str, int]:
        """Each path's row in storage order: its rank by a hash of the path.

        So the order is random, yet the same for a folder and a zip of it, and other files leave it as it is.
        """
        ranked = sorted((file.path for file in self.files), key=lambda path: hashlib.sha256(path.encode()).digest())
        return {path: row for row, path in enumerate(ranked)}


def scan(source: Path, labels: Labels = "required") -> Scan:
    """Look through a source without opening its images; UsageError if no tile can come from it."""
    suffix = source.suffix.lower()
    if source.is_dir():
        return _scan_tree(source, "folder", list_folder(source), labels)
    if not source.is_file():
        raise UsageError(f"{source} does not exist: name a folder of class folders, a zip of one, or a manifest")
    if suffix == ".zip":
        return _scan_tree(source, "zip", list_zip(source), labels)
    if suffix in (".csv", ".parquet"):
        return _scan_manifest(source, labels)
    raise UsageError(f"{source} is neither a folder, nor a zip, nor a manifest (.csv or .parquet)")


def _scan_tree(source: Path, kind: Literal["folder", "zip"], listed: Sequence[Listed], labels: Labels) -> Scan:
    problems = {item.path: item.problem or _name_problem(item.path) for item in listed}
    images = [path for path, problem in problems.items() if not problem]
    if not images:
        raise UsageError(_no_images(source, listed))
    root = _find_root(source, images) if labels == "required" else _find_common_root(images)
    files = [path for path in images if path.startswith(root) and (labels != "required" or "/" in path[len(root) :])]
    strays = set(images).difference(files)
    rejected = [
        Rejected(_printable(path.removeprefix(root)), problem or "in no class folder")
        for path, problem in problems.items()
        if problem or path in strays
    ]
    place = Place(kind, source, root)
    return Scan(
        place,
        tuple(TileFile(path, _label(path, labels), None, None) for path in (file[len(root) :] for file in files)),
        tuple(sorted(rejected)),
        _offered(place, listed) if labels == "required" else {},
        (),
        tuple(sorted((_printable(item.path), item.size, item.stamp) for item in listed)),
    )


def _label(path: str, labels: Labels) -> str | None:
    """The first folder of a path below the root."""
    folder, inside, _ = path.partition("/")
    return folder if inside and labels != "none" else None


def _offered(place: Place, listed: Sequence[Listed]) -> dict[str, int]:
    below = [item.path[len(place.root) :] for item in listed if item.path.startswith(place.root)]
    counts = Counter(path.split("/")[0] for path in below if "/" in path)
    return {_printable(name): counts[name] for name in sorted({*place.folders(), *counts})}


def _name_problem(path: str) -> str | None:
    if not path.lower().endswith(IMAGE_SUFFIXES):
        return f"another kind of file: its name ends in none of {', '.join(IMAGE_SUFFIXES)}"
    return None if _printable(path) == path else "the name is not valid UTF-8"


def _printable(path: str) -> str:
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _find_root(source: Path, images: Sequence[str]) -> str:
    """The data set's root within a source, "" or ending in "/", by the rule that this module states."""
    root = ""
    while True:
        folders = _folders(images, root)
        if not folders:
            raise UsageError(
                f"{source} holds {counted(len(images), 'image')} but no class folders: {_EXPECTED}, or a manifest "
                "(--unlabelled takes images of unknown class, to be predicted)"
            )
        if len(folders) > 1:
            _refuse_several(source, root, folders)
            return root
        ((only, folder),) = folders.items()
        if not folder.folders:
            return root
        root = f"{root}{only}/"


def _find_common_root(images: Sequence[str]) -> str:
    """As `_find_root`, where images may also lie in no folder."""
    root = ""
    while True:
        folders = _folders(images, root)
        outside = any("/" not in path[len(root) :] for path in images)
        if outside or len(folders) > 1 or not next(iter(folders.values())).folders:
            return root
        root = f"{root}{next(iter(folders))}/"


def _folders(images: Sequence[str], root: str) -> dict[str, Folder]:
    """The folders of images directly under `root`, by name."""
    inside: dict[str, list[str | None]] = {}
    for path in images:
        if path.startswith(root):
            first, *deeper = path[len(root) :].split("/")
            if deeper:
                inside.setdefault(first, []).append(deeper[0] if len(deeper) > 1 else None)
    return {
        name: Folder(found.count(None), frozenset(folder for folder in found if folder is not None))
        for name, found in sorted(inside.items())
    }


_EXPECTED = "expected a folder for each class, with images in it (tif, tiff, png, jpg, jpeg, webp)"


def _no_images(source: Path, listed: Sequence[Listed]) -> str:
    problems = Counter(item.problem for item in listed if item.problem)
    if problems:
        reasons = [f"  {count:,} {reason}" for reason, count in problems.most_common()]
        return "\n".join([f"{source} holds no images that can be taken:", *reasons])
    zips = sorted(path.name for path in source.glob("*.zip")) if source.is_dir() else []
    return f"{source} holds no images: {_EXPECTED}" + (f"; found {joined(zips)}: name one" if zips else "")


def _refuse_several(source: Path, root: str, folders: Mapping[str, Folder]) -> None:
    doubts = {name: doubt for name, folder in folders.items() if (doubt := _no_class(name, folder))}
    if not doubts:
        return
    first, doubt = next(iter(doubts.items()))
    where = f"{source}/{root}".rstrip("/")
    remedy = f"name one, as in {where}/{first}" if source.is_dir() else "put each into a zip of its own"
    raise UsageError(
        f"{where} holds several data sets: found {joined(folders)}; {remedy}.\n"
        f"{first} is not taken for a class: {doubt}. If these are classes, list the tiles in a manifest (path, label)"
    )


def _no_class(name: str, folder: Folder) -> str | None:
    """Why a folder beside others is no class, by the rule that this module states; None if it is one."""
    if folder.images:
        return None
    if _SPLIT_WORDS & set(re.split(r"[^a-z]+", name.lower())):
        return "it holds no images itself, and is named like a split"
    others = sorted(inside for inside in folder.folders if not _LIKE_A_SLIDE.fullmatch(inside))
    if others:
        return f"it holds no images itself, and folders in it are not named like slides (slide-07): {joined(others)}"
    return None


def _scan_manifest(source: Path, labels: Labels) -> Scan:
    manifest = read_manifest(source, labelled=labels == "required")
    rows = sorted(manifest.rows)
    listed = list_files(source.parent, [row.path for row in rows])
    return Scan(
        Place("folder", source.parent, ""),
        tuple(_tile_file(row, labels) for row, item in zip(rows, listed, strict=True) if not item.problem),
        tuple(Rejected(item.path, item.problem) for item in listed if item.problem),
        Counter(row.label for row in rows if row.label and labels != "none"),
        manifest.ignored,
        tuple((*row, item.size, item.stamp) for row, item in zip(rows, listed, strict=True)),
    )


def _tile_file(row: Row, labels: Labels) -> TileFile:
    """A line of a manifest; an empty label is none."""
    return TileFile(row.path, (row.label or None) if labels != "none" else None, row.group, row.split)


def digest(rows: Sequence[tuple[object, ...]]) -> str:
    """The sha256 of a table."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
