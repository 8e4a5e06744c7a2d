"""One node of a cluster: its Ray, and what it tells the others."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.addresses import address_towards
from cluster.allocation import Allocation
from cluster.doctor import gpus
from cluster.processes import start
from cluster.rendezvous import Rendezvous

POLL_S = 0.2
BEAT_S = 2.0
LAST_LINES = 15
GPUS_S = 120.0


class NodeError(Exception):
    """A node that cannot take part, or no longer can; with its last words."""


@dataclass
class Node:
    """This node. `directory` is its private one; `join_s` bounds every wait of the start."""

    allocation: Allocation
    meeting: Rendezvous
    directory: Path
    join_s: float
    _ray: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _beats: int = field(default=0, init=False)
    _told_at: float = field(default=0.0, init=False)

    @property
    def ray_directory(self) -> Path:
        """Ray's own files. Ray opens this one to everybody; the one around it stays closed."""
        return self.directory / "ray"

    @property
    def head_address(self) -> str | None:
        """The head's address (host:port), once Ray runs here and the cluster knows this node; Ray writes it last."""
        file = self.ray_directory / "ray_current_cluster"
        return (file.read_text().strip() or None) if file.exists() else None

    def start(self, argv: Sequence[str]) -> None:
        """Starts Ray here."""
        self._ray = start(argv, os.environ, self._log, shielded=True)

    def check_gpus(self) -> None:
        """Raises a NodeError, with driver and build, where torch does not see the GPUs that were granted."""
        if not self.allocation.gpus:
            return
        seen = gpus.ask(GPUS_S)
        finding = None if isinstance(seen, str) else gpus.judge(self.allocation.gpus, seen)
        if finding is None or finding.level == "fail":
            said = seen if finding is None else f"{finding.text}; {finding.remedy}"
            raise NodeError(f"node {self.allocation.node}: {said}")

    def address(self, peer: str) -> str:
        """This node's address in the network of `peer`.

        Raises:
            NodeError: where there is none, or others could not reach it.
        """
        try:
            address = address_towards(peer)
        except OSError as error:
            raise NodeError(f"node {self.allocation.node}: no way to {peer} ({error.strerror})") from None
        if address.startswith("127.") and self.allocation.nodes > 1 and not self.allocation.pretended:
            raise NodeError(
                f"node {self.allocation.node}: its name stands for {address} in /etc/hosts, which other nodes cannot "
                "reach; ask the site to remove that line"
            )
        return address

    def check(self) -> None:
        """Raises a NodeError with Ray's last lines where it has ended here."""
        if self._ray is not None and (code := self._ray.poll()) is not None:
            raise NodeError(f"node {self.allocation.node}: Ray has ended (exit code {code})\n{self._last_lines()}")

    def tell(self, state: str, why: str = "") -> None:
        """Tells the others how this node is."""
        self._beats, self._told_at = self._beats + 1, time.monotonic()
        self.meeting.publish(
            self.allocation.rank, {"node": self.allocation.node, "state": state, "why": why, "beats": self._beats}
        )

    def rest(self, state: str) -> bool:
        """Waits a moment; every few seconds tells the others that this node is there, and answers True.

        That is when to look what the others have told: the folder is not asked more often than it must.
        """
        due = time.monotonic() - self._told_at >= BEAT_S
        if due:
            self.tell(state)
        time.sleep(POLL_S)
        return due

    def wait(
        self, until: Callable[[], bool], check: Callable[[], None], state: str, problem: str, longer_s: float = 0.0
    ) -> None:
        """Waits until something is so; `check` raises where there is no use in waiting.

        Raises:
            NodeError: where it takes longer than `join_s` and `longer_s`.
        """
        limit_s = self.join_s + longer_s
        deadline = time.monotonic() + limit_s
        while not until():
            check()
            if time.monotonic() > deadline:
                # Where Ray is up, it has only advice to say.
                last = "" if self.head_address else f"\n{self._last_lines()}"
                raise NodeError(f"node {self.allocation.node}: {problem} in {limit_s:.0f} s{last.rstrip()}")
            self.rest(state)

    @property
    def _log(self) -> Path:
        return self.directory / "ray.log"

    def _last_lines(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        lines = [line for line in lines if "[state-dump]" not in line]  # a raylet's statistics
        return "\n".join(f"  {line}" for line in lines[-LAST_LINES:])
