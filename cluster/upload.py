"""What a Ray job's working directory would upload, looked at before anything leaves this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

SECRETS = (
    *(".env", ".env.*", ".netrc", ".git-credentials", "auth_token"),
    *("id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", "*.pem", "*.key", "*.p12", "*.pfx"),
)
TEMPLATES = ("*.example", "*.sample", "*.template")
LARGEST = 5
NAMED = 10

Excludes = list[Callable[[Path], bool]]


class UploadError(Exception):
    """A working directory that must not, or cannot, be uploaded."""


@dataclass(frozen=True)
class Upload:
    """The files that Ray takes from a directory, by their path in it, with their sizes in bytes."""

    root: Path
    files: dict[Path, int]

    @property
    def size(self) -> int:
        """Bytes of all files; Ray does not compress them."""
        return sum(self.files.values())

    def __str__(self) -> str:
        return f"{len(self.files):,} files, {_megabytes(self.size)}"


def inspect(directory: Path) -> Upload:
    """What Ray would upload: .gitignore, .rayignore and its own exclusions are its own functions' matter.

    Raises:
        UploadError: where there is no such directory; where a file looks like a secret, or a symbolic link leads out
            of the directory or back into a folder that it is in; where it all is more than Ray accepts.
    """
    if not directory.is_dir():
        raise UploadError(f"{directory}: there is no such folder to upload")
    root = directory.resolve()
    paths = list(_walk(root, root, _ray_excludes(root)))
    if problems := [f"  {path.relative_to(root)}: {why}" for path in paths if (why := _problem(path, root))]:
        more = [f"  ... and {len(problems) - NAMED} more"] if len(problems) > NAMED else []
        remedy = "remove them, or name them in .rayignore (or .gitignore), which keeps them here"
        raise UploadError("\n".join([f"{root} must not be uploaded:", *problems[:NAMED], *more, remedy]))
    upload = Upload(root, {path.relative_to(root): path.stat().st_size for path in paths if path.is_file()})
    _check_size(upload)
    return upload


def _walk(path: Path, root: Path, excludes: Excludes) -> Iterator[Path]:
    """All that Ray would visit, in its manner; links that must not be followed are not."""
    excludes = excludes + _ignore_files(path)
    if any(excluded(path) for excluded in excludes):
        return
    yield path
    if path.is_dir() and not _is_stray_link(path, root):
        for entry in sorted(path.iterdir()):
            yield from _walk(entry, root, excludes)


def _problem(path: Path, root: Path) -> str | None:
    if path.exists() and _is_stray_link(path, root):
        return f"a link to {path.resolve()}, out of this folder or back into itself"
    names = {path.name, path.resolve().name}
    if path.is_file() and any(_is_secret(name) for name in names):
        return "looks like a secret"
    return None


def _is_stray_link(path: Path, root: Path) -> bool:
    if not path.is_symlink():
        return False
    target = path.resolve()
    return not target.is_relative_to(root) or path.parent.resolve().is_relative_to(target)


def _is_secret(name: str) -> bool:
    return any(fnmatch(name, one) for one in SECRETS) and not any(fnmatch(name, one) for one in TEMPLATES)


def _check_size(upload: Upload) -> None:
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE as LIMIT

    if upload.size < LIMIT:
        return
    entries: dict[str, int] = {}
    for path, size in upload.files.items():
        entries[path.parts[0]] = entries.get(path.parts[0], 0) + size
    largest = sorted(entries, key=lambda name: entries[name], reverse=True)[:LARGEST]
    lines = [f"  {_megabytes(entries[name]):>12}  {name}" for name in largest]
    remedy = "name what the job does not need in .rayignore; data and weights belong on a path that all nodes see"
    title = f"{upload.root} holds {upload}, and Ray accepts {_megabytes(LIMIT)}; the largest in it:"
    raise UploadError("\n".join([title, *lines, remedy]))


def _ray_excludes(root: Path) -> Excludes:
    """What Ray leaves out of any working directory (.git, .venv, ...)."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _get_excludes

    return [_get_excludes(root, get_runtime_env_default_excludes())]


def _ignore_files(path: Path) -> Excludes:
    """What the .gitignore and .rayignore of this folder leave out."""
    from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    with_gitignore = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    return list(get_excludes_from_ignore_files(path, with_gitignore, logging.getLogger(__name__)))


def _megabytes(size: int) -> str:
    return f"{size / 1024**2:,.1f} MiB"
