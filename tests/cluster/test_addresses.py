from __future__ import annotations

import socket

from cluster import addresses
from cluster.addresses import HANDED_OUT, free_port_for_later


def test_a_port_for_later_is_free_on_every_address_and_not_handed_out_to_others() -> None:
    first, last = (int(word) for word in HANDED_OUT.read_text().split())
    ports = {free_port_for_later() for _ in range(50)}
    assert len(ports) > 40
    assert not [port for port in ports if first <= port <= last]
    for port in ports:
        with socket.socket() as probe:
            probe.bind(("", port))


def test_a_port_on_which_something_listens_is_not_chosen(monkeypatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(addresses, "LOWEST", port)
        monkeypatch.setattr(addresses, "HIGHEST", port + 2)
        assert {free_port_for_later() for _ in range(10)} == {port + 1}
