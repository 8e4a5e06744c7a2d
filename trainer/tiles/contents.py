"""What the files of a source hold, as one digest: a copy has the same, whatever the times of its files."""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from trainer.progress import track
from trainer.tiles.decode import Rejection
from trainer.tiles.scan import Scan, digest


def content_digest(found: Scan, hashes: Iterable[str | None]) -> str:
    """The digest of a source from the sha256 of each of its files, in their order; null: it cannot be read."""
    return digest(sorted((*file, sha256 or "") for file, sha256 in zip(found.files, hashes, strict=True)))


def read_content_digest(found: Scan) -> str:
    """The same digest from the files as they are now: each is read, none is decoded."""
    read = found.place.reader()

    def sha256(path: str) -> str | None:
        try:
            return hashlib.sha256(read(path)).hexdigest()
        except Rejection:
            return None

    hashes = []
    with (
        track("Comparing contents", len(found.files), "files") as advance,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads,
    ):
        for result in threads.map(sha256, (file.path for file in found.files)):
            hashes.append(result)
            advance(1)
    return content_digest(found, hashes)
