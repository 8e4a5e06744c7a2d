"""One process a node makes a Ray cluster of an allocation, and runs a command in it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import FrameType

from cluster.addresses import free_port_for_later
from cluster.allocation import Allocation, nodes_counted
from cluster.early import EarlyStops
from cluster.node import POLL_S, Node, NodeError
from cluster.others import Others, Watch
from cluster.private import environment, private_directory, removed_when_killed, set_environment
from cluster.processes import STOP_SIGNALS, adopt_orphans, end, end_all, start
from cluster.ray_cluster import authentication, head_argv, node_argv, ray_environment
from cluster.rendezvous import Rendezvous, RendezvousError

FAILED, WRONG, STOPPED = 1, 2, 75
COMMAND_GRACE_S = 30.0
LAST_WORDS_S = 10.0


class StopRequestedError(Exception):
    """A stop was asked for before there was a command to pass it on to."""


class OverError(Exception):
    """The head has said that it is over."""


class Requests:
    """Signals that ask for a stop, kept until they are taken."""

    def __init__(self) -> None:
        self._waiting: list[int] = []
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)

    def take(self) -> list[int]:
        """Those that have come since the last call."""
        taken, self._waiting = self._waiting, []
        return taken

    def _note(self, number: int, _: FrameType | None) -> None:
        self._waiting.append(number)


def run(
    allocation: Allocation, shared: Path, command: Sequence[str], join_s: float, code_file: Path | None = None
) -> int:
    """Makes this node a part of the job's cluster; on the first node, runs the command once all have joined.

    Args:
        allocation: this node's part of what the scheduler has given.
        shared: a folder that all nodes see.
        command: the program to run on the first node; `RAY_ADDRESS`, the token and the job's names are in its
            environment.
        join_s: seconds that each step of joining may take.
        code_file: a file for the exit code, which the first node writes last.

    Returns:
        On the first node the command's exit code (128 and the signal's number where one ended it), 1 where the
        cluster failed, 2 where there is no such command, 75 where a stop was asked for before the command began; 0 on
        the others, whose failures the first node reports. Nothing that was started is left.
    """
    requests = Requests()
    meeting = Rendezvous(shared.absolute() / allocation.start)
    try:
        meeting.open()
        to_remove = removed_when_killed(meeting.path) if allocation.rank == 0 else nullcontext()
        with private_directory(allocation.number) as directory, to_remove, environment(ray_environment()):
            node = Node(allocation, meeting, directory, join_s)
            adopt_orphans()  # only now: what waits for this process to be killed must be nobody's child
            try:
                if allocation.rank != 0:
                    return follow(node)
                code = lead(node, command, requests)
                if code_file is not None:
                    code_file.write_text(f"{code}\n")
                return code
            finally:
                if left := end_all():
                    _complain(f"node {allocation.node}: processes {left} do not end")
    except RendezvousError as error:
        _complain(f"node {allocation.node}: {error}")
        return FAILED


def lead(node: Node, command: Sequence[str], requests: Requests) -> int:
    """The first node: starts Ray's head, waits for the others, runs the command, ends it all."""
    others = Others(node)
    early = EarlyStops(node.meeting.path.parent, node.allocation)

    def check() -> None:
        node.check()
        others.check()
        if requests.take():
            raise StopRequestedError

    try:
        if shutil.which(command[0]) is None:
            _complain(f"node {node.allocation.node}: there is no command {command[0]}; name one after --")
            return WRONG
        for name in node.allocation.earlier_starts:  # which may have ended without a word
            Rendezvous(node.meeting.path.with_name(name)).remove()
        node.meeting.write_token()
        set_environment(authentication(node.meeting.token_file))
        address = node.address(node.allocation.peer)
        node.start(head_argv(node.allocation, address, node.ray_directory, free_port_for_later()))
        node.check_gpus()
        node.wait(lambda: node.head_address is not None, check, "starting", "Ray's head has not started")
        head = str(node.head_address)
        node.meeting.open_cluster(head)
        if not others.joined():
            _say(f"Ray's head is up; it waits for {nodes_counted(node.allocation.nodes - 1)} more")
        # Their own wait ends first, so that they can say why they have not.
        node.wait(others.joined, check, "waiting", "the other nodes have not joined", LAST_WORDS_S)
        _say(f"Ray cluster of {nodes_counted(node.allocation.nodes)} is up, its head at {head}")
        early.forget()
        variables = {**os.environ, **_job(node.allocation), "RAY_ADDRESS": head}
        return supervise(node, others, command, variables, requests)
    except NodeError as error:
        _complain("\n".join([str(error), *others.missing()]))
        return FAILED
    except StopRequestedError:
        if early.too_many():
            _complain("stopped again and again before the command began; give the job more time (sbatch --time)")
            return FAILED
        _say("stopped before the command began")
        return STOPPED
    finally:
        node.meeting.close_cluster()
        end_all()
        others.wait_for_end()
        node.meeting.remove()


def supervise(node: Node, others: Others, command: Sequence[str], variables: dict[str, str], requests: Requests) -> int:
    """Runs the command, passes requests to stop on to it, and says what becomes of the nodes; its exit code.

    Raises:
        NodeError: where Ray ends on this node; the command has been ended.
    """
    process = start(command, variables)
    with Watch(node, others) as watch:
        while (code := process.poll()) is None:
            for number in requests.take():
                process.send_signal(number)
            try:
                node.check()
            except NodeError:
                end(process, COMMAND_GRACE_S)
                raise
            for line in watch.news():
                _say(line)
            time.sleep(POLL_S)
    return code if code >= 0 else 128 - code


def follow(node: Node) -> int:
    """Any other node: joins, and stays until the head says that it is over. Requests to stop are the head's to heed."""

    def check() -> None:
        node.check()
        if node.meeting.over():
            raise OverError

    try:
        node.wait(lambda: node.meeting.head() is not None, check, "waiting", "the head has not said where it is")
        set_environment(authentication(node.meeting.token_file))
        head = str(node.meeting.head())
        address = node.address(head.rsplit(":", 1)[0])
        node.start(node_argv(node.allocation, head, address, node.ray_directory))
        node.check_gpus()
        node.wait(lambda: node.head_address is not None, check, "joining", f"has not joined {head}")
        node.tell("joined")
        while True:
            node.check()
            if node.rest("joined") and node.meeting.over():
                raise OverError
    except OverError:
        why = ""
    except (NodeError, OSError) as error:
        why = str(error) if isinstance(error, NodeError) else f"node {node.allocation.node}: {error}"
        _complain(why)
        node.tell("failed", why)
    end_all()
    node.tell("ended", why)
    return 0


def _job(allocation: Allocation) -> dict[str, str]:
    """How the command learns which batch job it runs in, if it does in one."""
    if allocation.pretended:
        return {}
    return {"TISSUEGRID_JOB": allocation.job, "TISSUEGRID_JOB_RESTARTS": str(allocation.restarts)}


def _say(text: str) -> None:
    print(f"cluster: {text}", file=sys.stderr, flush=True)


def _complain(text: str) -> None:
    print(f"error: {text}", file=sys.stderr, flush=True)
