"""What a folder or a zip holds, and how to read one of its files. Nothing is unpacked, no link leaves the tree."""

import io
import os
import shutil
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from trainer.errors import UsageError
from trainer.tiles.decode import Rejection

MAX_FILE_BYTES = 65 * 2**20  # an uncompressed file of 4096 x 4096 px with alpha fits
_PIECE = 2**20


class Listed(NamedTuple):
    """One file of a source, by its path with `/`; `stamp` changes when the content does (mtime or CRC-32)."""

    path: str
    size: int
    stamp: int
    problem: str | None = None


@dataclass(frozen=True)
class Place:
    """Where a data set lies: a folder or a zip, and the data set's root in it ("" or ending in "/")."""

    kind: Literal["folder", "zip"]
    file: Path
    root: str

    def reader(self) -> Callable[[str], bytes]:
        """A function that reads a file by its path below the root, or raises Rejection; one for each process."""
        read = _folder_reader(self.file) if self.kind == "folder" else _zip_reader(self.file)
        return lambda path: read(self.root + path)

    def folders(self) -> set[str]:
        """The names of the folders directly below the root, empty ones too, without litter."""
        if self.kind == "folder":
            names = {entry.name for entry in os.scandir(self.file / self.root) if entry.is_dir(follow_symlinks=False)}
        else:
            with _open_zip(self.file) as archive:
                below = [name[len(self.root) :] for name in archive.namelist() if name.startswith(self.root)]
            names = {name.split("/")[0] for name in below if "/" in name} - {"", ".."}
        return {name for name in names if not is_litter(name)}


def list_folder(folder: Path) -> list[Listed]:
    """Every file under a folder, in path order, without litter. Links to folders, or out of it, are problems."""
    listed = list(_walk(folder, ""))
    links = list_files(folder, [item.path for item in listed if item.problem == _LINK])
    return sorted([item for item in listed if item.problem != _LINK] + links)


_LINK = "link"


def _walk(root: Path, below: str) -> Iterator[Listed]:
    try:
        entries = list(os.scandir(root / below))
    except OSError as error:
        yield Listed(below, 0, 0, f"cannot be read: {error.strerror}")
        return
    for entry in entries:
        path = below + entry.name
        if is_litter(entry.name):
            continue
        if entry.is_symlink():
            yield Listed(path, 0, 0, _LINK)
        elif entry.is_dir():
            yield from _walk(root, f"{path}/")
        else:
            yield _listed(path, entry.stat())


def list_files(folder: Path, paths: Sequence[str]) -> list[Listed]:
    """The named files of a folder, which may be links within it."""
    top = folder.resolve()
    listed = []
    for path in paths:
        try:
            file = (folder / path).resolve(strict=True)
            listed.append(
                _listed(path, file.stat())
                if file.is_relative_to(top)
                else Listed(path, 0, 0, "link: leads out of the folder, not followed")
            )
        except (OSError, RuntimeError):  # RuntimeError: a link to itself
            listed.append(Listed(path, 0, 0, "link: broken"))
    return listed


def _listed(path: str, status: os.stat_result) -> Listed:
    if stat.S_ISDIR(status.st_mode):
        return Listed(path, 0, 0, "link: to a folder, not followed")
    if not stat.S_ISREG(status.st_mode):
        return Listed(path, 0, 0, "not a regular file")
    return Listed(path, status.st_size, status.st_mtime_ns, _size_problem(status.st_size))


def list_zip(file: Path) -> list[Listed]:
    """Every member of a zip, in the order in which they lie in it, without litter; UsageError if it is damaged."""
    with _open_zip(file) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
    members.sort(key=lambda member: member.header_offset)
    times = Counter(member.filename for member in members)
    return [
        Listed(member.filename, member.file_size, member.CRC, _member_problem(member, times[member.filename]))
        for member in members
        if not any(is_litter(part) for part in member.filename.split("/") if part != "..")
    ]


_OTHER_METHODS = {9: "Deflate64", zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "LZMA", 93: "Zstandard"}


def _member_problem(member: zipfile.ZipInfo, times: int) -> str | None:
    if member.filename.startswith("/") or ".." in member.filename.split("/"):
        return "its name leads out of the zip"
    if times > 1:
        return "its name occurs more than once in the zip"
    if member.flag_bits & 1:
        return "encrypted: unpack the zip with its password, and name the folder"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "link: in a zip, not followed"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = _OTHER_METHODS.get(member.compress_type, f"method {member.compress_type}")
        return f"compressed by {method}: only deflate is read; unpack the zip, and name the folder"
    return _size_problem(member.file_size)


def _size_problem(size: int) -> str | None:
    return f"too large: more than {MAX_FILE_BYTES >> 20} MiB" if size > MAX_FILE_BYTES else None


def is_litter(name: str) -> bool:
    """Names that are never meant as data: hidden ones, and what macOS and Windows leave behind."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def _folder_reader(folder: Path) -> Callable[[str], bytes]:
    def read(path: str) -> bytes:
        try:
            return (folder / path).read_bytes()
        except OSError as error:
            raise Rejection(f"cannot be read: {error.strerror}") from None

    return read


def _zip_reader(file: Path) -> Callable[[str], bytes]:
    archive = _open_zip(file)

    def read(path: str) -> bytes:
        member = archive.getinfo(path)
        try:
            with archive.open(member) as stream, io.BytesIO() as content:
                shutil.copyfileobj(stream, content, _PIECE)  # in one piece it would be inflated without end, and twice
                return content.getvalue()
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
            raise Rejection(f"damaged: in the zip: {error or 'ends too early'}") from None

    return read


def _open_zip(file: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError, OSError) as error:
        raise UsageError(
            f"{file} is no zip, or it is cut short ({error}): get it again and check it with --md5"
        ) from None
