"""Who sends too much is told from the others, batch by batch; and servers that are behind drop it first."""

from __future__ import annotations

import socket

import pytest
from broker_support import SimulatedNetwork

from ntcpsock._servers import mmsg
from ntcpsock._servers.crowds import Crowds
from ntcpsock._servers.datagrams import DatagramSocket
from ntcpsock._servers.outlets import Outlets
from ntcpsock._servers.sources import pack_source, sources_by
from ntcpsock._servers.udp_desk import UdpDesk
from ntcpsock._traversal.broker.frame import decode_key_reply_untrusted, encode_key_request


def test_a_crowd_is_told_from_a_few() -> None:
    crowds = Crowds[str](1000.0)
    few = ["alice", "bob"]
    for _ in range(10):
        assert crowds.excessive([*few, *["mallory"] * 10], 5.0) == set()
    assert crowds.excessive([*few, "mallory"], 5.0) == {"mallory"}
    # Each moment is counted anew.
    assert crowds.excessive(["mallory"], 5.2) == set()


def test_invented_sources_fill_no_memory() -> None:
    crowds = Crowds[int](1000.0)
    for first in range(0, 100_000, 128):
        assert crowds.excessive(range(first, first + 128), 5.0) == set()
        assert len(crowds._counts) < 20_000


@pytest.mark.skipif(not mmsg.AVAILABLE, reason="no recvmmsg here")
def test_a_broker_that_is_behind_drops_a_flood_first() -> None:
    """Its nodes' frames are among what is left."""
    network = SimulatedNetwork()
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind(("127.0.0.1", 0))
    sock = DatagramSocket(bound)
    try:
        desk = UdpDesk(sock, network.core, Outlets(network.core.key, None))
        flood = [(b"x", b"mallory")] * 120
        frames = [*flood[:60], (b"1", b"alice"), *flood[60:], (b"2", b"bob")]
        assert desk._fair(frames, 5.0) == [(b"1", b"alice"), (b"2", b"bob")]
        assert network.core.dropped["too many datagrams"] == 120
        assert desk._fair(frames[-50:], 5.2) == frames[-50:]
    finally:
        sock.close()


@pytest.mark.skipif(not mmsg.AVAILABLE, reason="no recvmmsg here")
async def test_strangers_wait_in_a_queue_with_an_end() -> None:
    """A few are answered at a time; what does not fit is dropped and counted."""
    network = SimulatedNetwork()
    bound, stranger = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    for one in (bound, stranger):
        one.bind(("127.0.0.1", 0))
    stranger.settimeout(30)
    sock = DatagramSocket(bound)
    try:
        desk = UdpDesk(sock, network.core, Outlets(network.core.key, None))
        # Of many addresses, as far as the desk can tell.
        origins = [pack_source(sources_by((sock, []))(*stranger.getsockname())) for _ in range(6000)]
        asking = [(encode_key_request(number.to_bytes(24)), origin) for number, origin in enumerate(origins)]
        desk._put_aside(asking[:40])
        desk._answer_some_others()
        nonces = {decode_key_reply_untrusted(stranger.recv(2048))[0] for _ in range(16)}
        assert nonces == {number.to_bytes(24) for number in range(16)}
        assert len(desk._others) == 24
        for _ in range(2):
            # Said again it waits once.
            desk._put_aside(asking[40:4112])
        assert len(desk._others) == 4096
        desk._put_aside(asking[4112:])
        assert len(desk._others) == 4096
        assert network.core.dropped["too many strangers"] == 6000 - 4112
    finally:
        sock.close()
        stranger.close()
