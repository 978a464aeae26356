"""What is remembered of networks: it needs nothing, forbids nothing, and forgets."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest

from ntcpsock import _experience
from ntcpsock._experience import EXPIRY, FAILED_NODES, MAX_NETWORKS, Experience, network_id
from ntcpsock.testing.pytest_plugin import NatLabFactory

HOME, OFFICE = "home", "office"
NODES = [bytes([number]) * 32 for number in range(10)]


def wait_for_server(address: str) -> None:
    """One packet to the gateway, so that the neighbour is known."""
    with socket.socket() as sock, contextlib.suppress(OSError):
        sock.settimeout(5)
        sock.connect((address, 9))


class Clock:
    now = 1.8e9

    def __call__(self) -> float:
        return self.now


def learned(directory: Path | None, clock: Clock) -> Experience:
    """At home tcp-predict works and tcp-open has never."""
    experience = Experience(directory, clock)
    experience.note(HOME, "tcp-predict", NODES[0], True)
    for node in NODES[:FAILED_NODES]:
        experience.note(HOME, "tcp-open", node, False)
    return experience


def test_what_has_never_worked_is_late_on_this_network_only(tmp_path: Path) -> None:
    experience = learned(tmp_path, Clock())
    assert experience.late(HOME) == {"tcp-open"}
    assert experience.late(OFFICE) == frozenset()


def test_it_takes_several_nodes_and_something_that_works(tmp_path: Path) -> None:
    experience = Experience(tmp_path, Clock())
    for _ in range(10):
        experience.note(HOME, "tcp-open", NODES[0], False)  # that node's fault, perhaps
    for node in NODES[:FAILED_NODES]:
        experience.note(HOME, "public", node, False)
        experience.note(HOME, "lan", node, False)
        experience.note(HOME, "relay", node, True)
    assert experience.late(HOME) == frozenset()
    experience.note(HOME, "tcp-predict", NODES[0], True)
    assert experience.late(HOME) == {"public"}


def test_a_success_clears_it_and_lasts(tmp_path: Path) -> None:
    experience = learned(tmp_path, Clock())
    experience.note(HOME, "tcp-open", NODES[5], True)
    for node in NODES:
        experience.note(HOME, "tcp-open", node, False)
    assert experience.late(HOME) == frozenset()


def test_it_is_kept_from_one_process_to_the_next_and_expires(tmp_path: Path) -> None:
    clock = Clock()
    learned(tmp_path, clock).save()
    assert Experience(tmp_path, clock).late(HOME) == {"tcp-open"}
    clock.now += EXPIRY + 1
    assert Experience(tmp_path, clock).late(HOME) == frozenset()
    clock.now -= 10 * EXPIRY  # a clock that was wrong
    assert Experience(tmp_path, clock).late(HOME) == frozenset()


def test_two_processes_share_the_file(tmp_path: Path) -> None:
    clock = Clock()
    first, second = learned(tmp_path, clock), Experience(tmp_path, clock)
    second.note(OFFICE, "public", NODES[0], True)
    first.save()
    second.save()
    both = Experience(tmp_path, clock)
    assert set(both._networks) == {HOME, OFFICE}
    assert both.late(HOME) == {"tcp-open"}


def test_the_file_is_bounded(tmp_path: Path) -> None:
    clock = Clock()
    experience = Experience(tmp_path, clock)
    for number in range(MAX_NETWORKS + 20):
        clock.now += 1
        for node in NODES:
            experience.note(f"network {number}", "tcp-open", node, False)
    experience.save()
    kept = Experience(tmp_path, clock)._networks
    assert len(kept) == MAX_NETWORKS
    assert f"network {MAX_NETWORKS + 19}" in kept
    assert all(len(record["tcp-open"].failed) == FAILED_NODES for record in kept.values())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"home": 5}',
        b'{"home": {"tcp-open": {"failed": [1, 2, 3], "last": 1}}}',
        b'{"home": {"tcp-open": {"worked": "yes"}}}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"home": {}}' + b" " * 300_000,
    ],
)
def test_a_broken_file_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "networks.json").write_bytes(content)
    experience = learned(tmp_path, Clock())
    experience.save()
    assert Experience(tmp_path, Clock()).late(HOME) == {"tcp-open"}


def test_where_nothing_can_be_written_it_is_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    for directory in (tmp_path / "file", None, Path("/proc/nowhere")):
        experience = learned(directory, Clock())
        experience.save()
        assert experience.late(HOME) == {"tcp-open"}
    assert os.listdir(tmp_path) == ["file"]


def test_nothing_is_written_when_nothing_is_new(tmp_path: Path) -> None:
    clock = Clock()
    experience = learned(tmp_path, clock)
    experience.save()
    (tmp_path / "networks.json").unlink()
    clock.now += 60
    experience.note(HOME, "tcp-predict", NODES[3], True)
    experience.note(HOME, "tcp-open", NODES[0], False)
    experience.save()
    assert not (tmp_path / "networks.json").exists()


def test_a_network_is_its_gateway_where_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A home's public address changes from day to day; that its router is at 192.168.1.1 says little."""
    ids = []
    for gateway in (("192.168.1.1", "02:00:00:00:00:01"), ("192.168.1.1", ""), ("", "")):
        monkeypatch.setattr(_experience, "_gateway", lambda gateway=gateway: gateway)
        ids.append((network_id("192.0.2.1"), network_id("192.0.2.2")))
    assert [first == second for first, second in ids] == [True, False, False]
    assert len({name for pair in ids for name in pair}) == 5
    assert all(set(name) <= set("0123456789abcdef") for pair in ids for name in pair)


@pytest.mark.lab
def test_the_gateway_of_a_host(nat_lab: NatLabFactory) -> None:
    lab = nat_lab()
    lab.host_a.call(wait_for_server, lab.server_addresses[0])
    address, hardware = lab.host_a.call(_experience._gateway)
    assert address == lab.host_a.address.rsplit(".", 1)[0] + ".1"
    assert len(hardware) == 17
