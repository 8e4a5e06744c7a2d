"""Several pretended nodes on this machine, to try out what runs over several."""

from __future__ import annotations

import os
import re
import secrets
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from cluster.allocation import Allocation, AllocationError, local
from cluster.processes import STOP_SIGNALS, end_with_parent


def run_local(asked: str, act: Callable[[Allocation], int]) -> int:
    """Does what each node does on `local:N` pretended ones: one process each, as `srun` starts them.

    Returns:
        The first one's exit code.

    Raises:
        AllocationError: where `asked` is not local:N.
    """
    if (match := re.fullmatch(r"local:([1-9]\d?)", asked)) is None:
        raise AllocationError(f"--nodes {asked}: give local:N with N from 1 to 99, or start by srun")
    nodes, job = int(match[1]), f"local-{secrets.token_hex(3)}"
    allocations = [local(job, rank, nodes) for rank in range(nodes)]
    processes = [_fork(partial(act, one)) for one in allocations]
    for number in STOP_SIGNALS:
        signal.signal(number, lambda which, _: _pass_on(processes[0], which))
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    return codes[0]


def _pass_on(process: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it has ended
        os.kill(process, number)


def _fork(act: Callable[[], int]) -> int:
    """A child process that does this and nothing else; its pid."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        end_with_parent()
        os.setpgid(0, 0)  # a terminal's signals come once, from the parent
        code = act()
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
