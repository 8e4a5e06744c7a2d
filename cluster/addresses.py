"""Addresses and ports of this node."""

from __future__ import annotations

import socket


def address_towards(peer: str) -> str:
    """This node's address in the network over which it reaches `peer` (an IPv4 address; nothing is sent).

    Raises:
        OSError: where there is no way to it.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((peer, 9))
        return str(probe.getsockname()[0])


def free_port(address: str) -> int:
    """A port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
