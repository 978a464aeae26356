"""Capturing on loopback: the one connection is seen, and the thread ends whatever ends the block."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from ntcpsock._address import Endpoint
from ntcpsock._raw import capture as module
from ntcpsock._raw.capture import open_capture
from ntcpsock._raw.inject import Injector
from ntcpsock._raw.packet import Syn, build_syn_ack, parse_syn_untrusted, syn_filter
from ntcpsock._raw.privileges import missing_for_raw

pytestmark = pytest.mark.skipif(missing_for_raw() is not None, reason=f"needs {missing_for_raw()}")

PATIENCE = 60.0


@contextmanager
def listening() -> Iterator[Endpoint]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Endpoint(*server.getsockname())


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def connect_from(port: int, target: Endpoint) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.connect(target)


def capturing() -> int:
    """How many threads are inside a capture."""
    return int(module._threads.borrowed_tokens)


async def test_the_syn_of_one_connection_is_seen_and_no_other() -> None:
    with listening() as target, trio.fail_after(PATIENCE):
        port = free_port()
        async with open_capture(syn_filter(port, target), parse_syn_untrusted) as capture:
            connect_from(0, target)
            connect_from(port, target)
            syn = await capture.next()
            assert isinstance(syn, Syn)
            assert syn.maximum_segment > 536
            with pytest.raises(trio.WouldBlock):
                capture._receive.receive_nowait()
    assert capturing() == 0


async def test_what_the_parser_refuses_is_counted() -> None:
    with listening() as target, trio.fail_after(PATIENCE):
        port = free_port()
        text = f"tcp and src port {port}"  # the ACK and the FIN, too
        async with open_capture(text, parse_syn_untrusted) as capture:
            connect_from(port, target)
            await capture.next()
            while not capture.dropped:
                await trio.sleep(0.01)


@pytest.mark.parametrize("how", ["cancelled", "error", "left"])
async def test_the_thread_ends_with_the_block(how: str) -> None:
    with trio.fail_after(PATIENCE):
        with trio.CancelScope() as scope:
            try:
                # On a quiet network: nothing ever fits this filter.
                async with open_capture("tcp port 1 and tcp port 2", parse_syn_untrusted) as capture:
                    assert capturing() == 1
                    if how == "cancelled":
                        scope.cancel()
                        await capture.next()
                    elif how == "error":
                        raise ConnectionError("the block's own")
            except ConnectionError:
                assert how == "error"
    assert capturing() == 0


@pytest.mark.parametrize("seconds", [0.0, 0.0005, 0.002, 0.005, 0.02])
async def test_cancelled_while_it_opens(seconds: float) -> None:
    with trio.fail_after(PATIENCE):
        with trio.move_on_after(seconds):
            async with open_capture("tcp port 1 and tcp port 2", parse_syn_untrusted) as capture:
                await capture.next()
    assert capturing() == 0


async def test_a_filter_that_is_none() -> None:
    with pytest.raises(OSError, match="capturing packets failed") as info:
        async with open_capture("this is no filter", parse_syn_untrusted):
            raise AssertionError("opened")
    assert info.value.errno == errno.EIO
    assert capturing() == 0


async def test_an_injected_packet_is_on_the_network() -> None:
    source, target = Endpoint("127.0.0.1", 23457), Endpoint("127.0.0.1", 34567)

    def parse(frame: bytes, link: int) -> bytes:
        return frame[16 + 20 :]

    injector = Injector()
    packet = build_syn_ack(source, target, Syn(7, 500), Syn(9, 500))
    with trio.fail_after(PATIENCE):
        async with open_capture("tcp src port 23457 and tcp dst port 34567", parse) as capture:
            await injector.send(lambda: packet, target.host)
            assert await capture.next() == packet[20:]
    injector.close()


async def test_a_capture_that_breaks_says_so() -> None:
    def parse(frame: bytes, link: int) -> bytes:
        raise RuntimeError("broken library")

    with listening() as target, trio.fail_after(PATIENCE):
        async with open_capture(f"tcp and dst port {target.port}", parse) as capture:
            connect_from(0, target)
            for _ in range(2):
                with pytest.raises(OSError, match="capturing packets failed: broken library"):
                    await capture.next()
    assert capturing() == 0


async def test_a_packet_that_cannot_be_built() -> None:
    def make() -> bytes:
        raise ValueError("no such option")

    injector = Injector()
    with pytest.raises(OSError, match="building a packet failed: no such option"):
        await injector.send(make, "127.0.0.1")
    injector.close()
