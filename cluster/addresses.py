"""Addresses and ports of this node."""

from __future__ import annotations

import random
import socket
from pathlib import Path

HANDED_OUT = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST, HIGHEST = 10_000, 65_000


def address_towards(peer: str) -> str:
    """This node's address in the network over which it reaches `peer` (an IPv4 address; nothing is sent).

    Raises:
        OSError: where there is no way to it.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((peer, 9))
        return str(probe.getsockname()[0])


def free_port_for_later() -> int:
    """A port on which nothing listens now, on any address, nor is likely to soon: the system hands others out.

    For programs that listen on it long after it was chosen.
    """
    first, last = (int(word) for word in HANDED_OUT.read_text().split())
    others = [port for port in range(LOWEST, HIGHEST) if not first <= port <= last] or range(LOWEST, HIGHEST)
    while True:
        port = random.choice(others)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        return port


def free_port(address: str) -> int:
    """A port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
