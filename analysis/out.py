"""Where a page and its tables may be written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import UsageError
from trainer.rundir import RunDir, SearchDir
from trainer.tiles.meta import META


def refuse_foreign(out: Path) -> None:
    """Refuses a file, and a folder in a run, a search or a tile store, which hold what their contracts name alone.

    Raises:
        UsageError: naming it.
    """
    place = out.resolve()
    if place.exists() and not place.is_dir():
        raise UsageError(f"--out {out}: is a file; name a folder")
    for folder in (place, *place.parents):
        holds = {
            "run directory": RunDir(folder).identity_file,
            "search directory": SearchDir(folder).search_file,
            "tile store": folder / META,
        }
        for what, file in holds.items():
            if file.is_file():
                raise UsageError(f"--out {out}: lies in the {what} {folder}; name a folder outside of it")


def write_whole(file: Path, text: str) -> None:
    """Writes a file in one step: who is killed leaves the old one or the new one."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(file)


@contextmanager
def made(out: Path) -> Iterator[None]:
    """Makes the folder, to be written to while the context lasts.

    Raises:
        UsageError: where it is no place to write to, as `refuse_foreign` says, or cannot be written to.
    """
    refuse_foreign(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        place = error.filename or out
        raise UsageError(f"{place}: cannot be written ({error.strerror}); name another --out") from None
