"""The two ways in which a command of ours may end badly; each message names the thing and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(Exception):
    """Wrong usage, configuration or input: found before work starts. One argument for each thing that is wrong."""

    exit_code = 2

    def __str__(self) -> str:
        if len(self.args) == 1:
            return str(self.args[0])
        return "\n".join([f"{len(self.args)} things are wrong:", *(f"  {problem}" for problem in self.args)])


class RunError(Exception):
    """The work itself failed on the way."""

    exit_code = 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was not enough: this machine's, or a GPU's. torch's CPU allocator has no error of its own."""
    is_a_gpus = type(error).__name__ == "OutOfMemoryError"
    return is_a_gpus or isinstance(error, MemoryError) or "DefaultCPUAllocator: " in str(error)


class Problems:
    """What independent checks found wrong, to be said at once."""

    def __init__(self) -> None:
        self._found: list[str] = []

    @contextmanager
    def kept(self, option: str = "") -> Iterator[None]:
        """Keeps a UsageError that is raised inside, under the name of an option where it does not say it itself."""
        try:
            yield
        except UsageError as error:
            found = [f"{option}: {problem}" if option else problem for problem in error.args]
            self._found += [problem for problem in found if problem not in self._found]

    def check(self) -> None:
        """Raises what was kept, if anything was, as one UsageError."""
        if self._found:
            raise UsageError(*self._found)
