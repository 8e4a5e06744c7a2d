"""A run's place in object storage: what is there, whose it is, and how it comes back to where it is not.

The mirror is laid out as `run.storage` is. There, too, a checkpoint counts once it has its manifest, which is copied
last. Whose the mirror is, its `run.json` and newest attempt say: where they are not the run directory's own, byte for
byte, the run went on elsewhere.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO
from urllib.parse import parse_qs, urlsplit

from pyarrow import ArrowException, fs

from trainer.checkpoint import MANIFEST, NAME, Checkpoint, find_flaw, listed, quarantine
from trainer.durable import sync
from trainer.errors import RunError, UsageError
from trainer.rundir import RunDir

CONNECT_S, ANSWER_S, TRIES = 5, 10, 2
CHUNK = 1 << 20
OBJECT_STORES = {"s3", "gcs", "abfs"}
PART = ".part"
PASSING = re.compile(
    r"NETWORK_CONNECTION|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|SLOW_DOWN|THROTTLING|REQUEST_TIMEOUT|HTTP status 5\d\d"
)
"""What an object store says where it may be well later."""
REMEDY = (
    "name a bucket or folder that is there and may be written to, as s3://BUCKET/PATH, with the credentials in the "
    "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), or leave run.mirror out"
)


class UnreachableError(UsageError):
    """The mirror does not answer; it may be right all the same."""


class Mirror:
    """One run's place in a mirror. Where the storage fails, methods raise OSError or ArrowException."""

    def __init__(self, uri: str, run: RunDir):
        self.uri, self.run = uri, run
        files, root = fs.FileSystem.from_uri(uri)
        self.files: Any = _patient(files, uri) if files.type_name == "s3" else files
        self.root = root.rstrip("/")
        self.whole = files.type_name in OBJECT_STORES  # what is written there appears whole or not at all

    @classmethod
    def reached(cls, uri: str, run: RunDir) -> Mirror:
        """The mirror, once a file could be written to it and removed again.

        Raises:
            UnreachableError: where it does not answer.
            UsageError: where the URI is wrong, there is no such bucket, or it may not be written to.
        """
        try:
            mirror = cls(uri, run)
            probe = mirror.place(run.path / f".{uuid.uuid4().hex}{PART}")
            mirror._make_room(probe)
            with mirror.files.open_output_stream(probe) as sink:
                sink.write(b"can be written")
            mirror.files.delete_file(probe)
        except (OSError, ArrowException) as error:
            raise _unusable(uri, error) from None
        return mirror

    def place(self, file: Path) -> str:
        """Where the mirror keeps a file or folder of the storage root."""
        return f"{self.root}/{file.relative_to(self.run.storage).as_posix()}"

    def sizes(self, folder: Path) -> dict[str, int]:
        """Bytes of every file in the mirror's copy of a folder, by its path in there."""
        place = self.place(folder)
        found = self.files.get_file_info(fs.FileSelector(place, recursive=True, allow_not_found=True))
        files = {info.path.removeprefix(f"{place}/"): info.size for info in found if info.is_file}
        return {name: size for name, size in files.items() if not name.endswith(PART)}

    def read(self, file: Path) -> bytes | None:
        """The mirror's copy of a small file; None where it has none."""
        try:
            with self.files.open_input_stream(self.place(file)) as source:
                return bytes(source.read())
        except FileNotFoundError:
            return None

    def write(self, file: Path, source: BinaryIO) -> None:
        """Copies a file's open content to its place. In a folder it gets its name when it is whole."""
        target = self.place(file)
        self._make_room(target)
        with self.files.open_output_stream(target if self.whole else target + PART) as sink:
            _stream(source, sink)
        if not self.whole:
            self.files.move(target + PART, target)

    def stranger(self) -> str | None:
        """The file by which what the mirror holds is not the run directory's; None where it is."""
        numbers = [int(stem) for name in self.sizes(self.run.attempts_dir) if (stem := Path(name).stem).isdecimal()]
        newest = [self.run.attempt_file(max(numbers))] if numbers else []
        for file in (self.run.identity_file, *newest):
            theirs = self.read(file)
            if theirs is not None and (not file.exists() or file.read_bytes() != theirs):
                return str(file.relative_to(self.run.path))
        return None

    def check_history(self) -> None:
        """Refuses to begin beside a continuation of the run, or beside another run of its name.

        Raises:
            UnreachableError: where the mirror does not say whose it is.
            UsageError: where it is not this run's.
        """
        try:
            file = self.stranger()
        except (OSError, ArrowException) as error:
            raise _unusable(self.uri, error) from None
        if file is not None:
            raise UsageError(
                f"run.mirror: {self.uri} holds another history of run {self.run.name} (its {file} is not that of "
                f"{self.run.path}): the run went on elsewhere, or is another one. Move this directory aside to go on "
                "from the mirror, or give this run another --run.name"
            )

    def write_checkpoint(self, checkpoint: Checkpoint, check: Callable[[], None]) -> None:
        """Copies a checkpoint, its manifest last; before each file, `check` may still forbid it."""
        with ExitStack() as stack:
            files = sorted(checkpoint.path.iterdir(), key=lambda file: file.name == MANIFEST)
            # All are opened first: what training removes meanwhile can still be read to its end.
            for file, source in [(file, stack.enter_context(file.open("rb"))) for file in files]:
                check()
                self.write(file, source)

    def remove_checkpoint(self, name: str) -> None:
        """Removes a checkpoint, its manifest first, so that what is half removed does not count."""
        folder = self.run.checkpoints_dir / name
        if MANIFEST in self.sizes(folder):
            self.files.delete_file(self.place(folder / MANIFEST))
        self.files.delete_dir(self.place(folder))

    def move_aside(self, name: str) -> None:
        """Keeps the mirror's run under another name; run.json is moved last, so that a half moved run is still one."""
        own = self.run.identity_file.name
        for file in sorted(self.sizes(self.run.path), key=lambda file: file == own):
            target = self.place(self.run.path.with_name(name) / file)
            self._make_room(target)
            self.files.move(self.place(self.run.path / file), target)

    def fetch(self) -> list[str]:
        """Brings the run here: its checkpoints are verified, then its directory appears whole.

        Returns:
            What there is to say of it; nothing where the mirror has no such run.

        Raises:
            RunError: where it cannot be read there or written here.
        """
        try:
            with TemporaryDirectory(dir=self.run.path.parent, prefix=f".{self.run.name}.") as folder:
                fetched = RunDir(Path(folder) / self.run.name)
                if not self._fetch_files(fetched):
                    return []
                flawed = [(checkpoint, find_flaw(checkpoint)) for checkpoint in listed(fetched)]
                for checkpoint, flaw in flawed:
                    if flaw:
                        quarantine(fetched, checkpoint)
                newest = next((c.path.name for c in listed(fetched)), "no checkpoint")
                fetched.path.rename(self.run.path)
                sync(self.run.path.parent)
        except (OSError, ArrowException) as error:
            raise RunError(
                f"run {self.run.name} cannot be brought from {self.uri} to {self.run.path} ({reason(error)}); what is "
                "in that directory without a run.json must be moved aside, then the same command tries again"
            ) from None
        said = [f"checkpoint {c.path.name} of the mirror is not used: {flaw}" for c, flaw in flawed if flaw]
        return [*said, f"run {self.run.name} was not in {self.run.storage}: brought from {self.uri}, with {newest}"]

    def _fetch_files(self, fetched: RunDir) -> bool:
        """Brings the files of the run that count; False where there is no run."""
        names = self.sizes(self.run.path)
        if self.run.identity_file.name not in names:
            return False
        fetched.checkpoints_dir.mkdir(parents=True)
        for path in map(PurePosixPath, names):
            unfinished = NAME.fullmatch(path.parent.name) and str(path.with_name(MANIFEST)) not in names
            if unfinished or path.is_absolute() or ".." in path.parts:
                continue
            target = fetched.path / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with self.files.open_input_stream(self.place(self.run.path / path)) as source, target.open("wb") as sink:
                _stream(source, sink)
            sync(target)
        for folder in (fetched.path, *(path for path in fetched.path.rglob("*") if path.is_dir())):
            sync(folder)
        return True

    def _make_room(self, place: str) -> None:
        """Object stores have no folders, and the right to make what stands for them may be missing."""
        if not self.whole:
            self.files.create_dir(str(PurePosixPath(place).parent))


def _unusable(uri: str, error: BaseException) -> UsageError:
    kind = UnreachableError if PASSING.search(str(error)) else UsageError
    return kind(f"run.mirror: {uri} cannot be used ({reason(error)}); {REMEDY}")


def reason(error: BaseException) -> str:
    """What a storage says went wrong, in one line."""
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    if found := re.search(r"AWS Error (.*)", said):
        said = found[1]
    return re.split(r" \(Request ID|; Details:|\. Detail:", said)[0].strip()


def _patient(files: Any, uri: str) -> Any:
    """S3 as the URI says, that gives up in seconds rather than minutes, and holds one part of a file in memory."""
    options = {key: values[-1] for key, values in parse_qs(urlsplit(uri).query).items()}
    return fs.S3FileSystem(
        region=files.region,
        scheme=options.get("scheme"),
        endpoint_override=options.get("endpoint_override"),
        tls_ca_file_path=options.get("tls_ca_file_path"),
        force_virtual_addressing=options.get("force_virtual_addressing", "").lower() in ("true", "1"),
        connect_timeout=CONNECT_S,
        request_timeout=ANSWER_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=TRIES),
        background_writes=False,
        allow_delayed_open=True,
    )


def _stream(source: Any, sink: Any) -> None:
    while chunk := source.read(CHUNK):
        sink.write(chunk)
