"""What begins stunt2, stunt1 and natblaster, with a peer that lies; and a SYN by hand that a kernel answers to."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio

from ntcpsock._address import Endpoint
from ntcpsock._raw import capture as capture_module
from ntcpsock._raw.inject import Injector
from ntcpsock._raw.packet import Syn, build_syn_ack, decode_syn_untrusted, encode_syn
from ntcpsock._raw.privileges import missing_for_raw
from ntcpsock._report import Attempt
from ntcpsock._session.plain import PlainCarrier, to_plain
from ntcpsock._traversal.observe import HeldPorts
from ntcpsock._traversal.plan import PlannedAttempt
from ntcpsock._traversal.prediction import Observation, Prediction, encode_prediction
from ntcpsock._traversal.punch.driver import choose_port
from ntcpsock._traversal.punch.given import GivenSocket
from ntcpsock._traversal.punch.message import Signal, decode_sealed_payload_untrusted
from ntcpsock._traversal.signals import Mailbox, Talk
from ntcpsock._traversal.strategies import half_open, rendezvous
from ntcpsock._traversal.strategies.base import AttemptContext
from ntcpsock._traversal.strategies.half_open import HalfOpen, connect_half_open
from ntcpsock._traversal.strategies.rendezvous import Rendezvous, agree
from ntcpsock._traversal.strategies.tcp_natblaster import attempt as natblaster

PATIENCE = 60.0
DIAL, ROUND = b"d" * 16, 5
PEER, OURS, VICTIM = "192.0.2.1", "198.51.100.1", "203.0.113.99"
SERVERS = Endpoint("198.51.100.50", 3478), Endpoint("198.51.100.51", 3478)

needs_raw = pytest.mark.skipif(missing_for_raw() is not None, reason=f"needs {missing_for_raw()}")


async def authenticate(sock: trio.socket.SocketType | GivenSocket) -> PlainCarrier:
    assert not isinstance(sock, GivenSocket)
    return PlainCarrier(to_plain(sock))


class Side:
    """One side of a round whose other side is this test."""

    def __init__(self, nursery: trio.Nursery, remote: Endpoint, technique: str = "tcp-stunt2") -> None:
        self.said: list[Signal] = []
        self.mailbox = Mailbox()
        talk = Talk(DIAL, ROUND, self.mailbox, nursery, self._send)
        planned = PlannedAttempt(technique, remote, 0.0, PATIENCE)
        entry = Attempt(technique, None, None, 0.0)
        self.context = AttemptContext(planned, 1, 0.1, authenticate, entry, talk=talk)

    async def _send(self, payload: bytes) -> None:
        message = decode_sealed_payload_untrusted(payload)
        assert isinstance(message, Signal)
        self.said.append(message)

    def hears(self, name: str, body: bytes) -> None:
        self.mailbox.take(Signal(DIAL, ROUND, name, body))


@asynccontextmanager
async def round_with(remote: Endpoint, technique: str = "tcp-stunt2") -> AsyncIterator[Side]:
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            yield Side(nursery, remote, technique)
            nursery.cancel_scope.cancel()


def observed(*mapped: int) -> list[Observation]:
    """Local ports 101, 108, ...; the last one is seen by both servers."""
    found = [Observation(101 + 7 * n, SERVERS[0], Endpoint(OURS, port)) for n, port in enumerate(mapped[:-1])]
    return [*found, Observation(found[-1].local_port, SERVERS[1], Endpoint(OURS, mapped[-1]))]


@pytest.fixture
def see(monkeypatch: pytest.MonkeyPatch) -> list[Observation]:
    observations: list[Observation] = []

    @asynccontextmanager
    async def hold_ports(
        servers: Sequence[Endpoint], taken: Collection[int] = ()
    ) -> AsyncIterator[HeldPorts]:
        yield HeldPorts(1, observations)

    monkeypatch.setattr(rendezvous, "hold_ports", hold_ports)
    return observations


EXACT = encode_prediction(Prediction("exact", PEER, 7000, 7000))
BAND = encode_prediction(Prediction("band", PEER, 7000, 7511))


async def agree_on(see: list[Observation], mapped: Sequence[int], word: bytes) -> Rendezvous:
    see += observed(*mapped) if mapped else []
    async with round_with(Endpoint(PEER, 0)) as side:
        side.hears("port", word)
        async with agree(side.context) as meeting:
            return meeting
    raise AssertionError("unreachable")


async def test_both_ports_are_known(see: list[Observation]) -> None:
    meeting = await agree_on(see, (5000, 9000, 7777, 7777), EXACT)
    assert meeting == Rendezvous(115, Endpoint(OURS, 7777), Endpoint(PEER, 7000))


async def test_a_nat_that_counts_has_a_known_port_too(see: list[Observation]) -> None:
    meeting = await agree_on(see, (5000, 5001, 5002, 5003), EXACT)
    assert meeting.mapped == Endpoint(OURS, 5004)
    assert meeting.port not in (101, 108, 115)  # those have their mappings


@pytest.mark.parametrize(
    ("mapped", "word", "code", "text"),
    [
        ((), EXACT, errno.ENODATA, "no STUN server answered"),
        ((5000, 9000, 7000, 6100, 8123), EXACT, errno.EHOSTUNREACH, "NAT of this side"),
        ((7777, 7777), BAND, errno.EHOSTUNREACH, "NAT of the other side"),
        ((7777, 7777), b"noise", errno.EPROTO, "the other side's port"),
        # Whom the broker does not see there is not aimed at.
        (
            (7777, 7777),
            encode_prediction(Prediction("exact", VICTIM, 80, 80)),
            errno.EPROTO,
            "the other side's port",
        ),
    ],
)
async def test_what_cannot_be_met(
    see: list[Observation], mapped: tuple[int, ...], word: bytes, code: int, text: str
) -> None:
    with pytest.raises(OSError, match=text) as info:
        with unwrapped():
            await agree_on(see, mapped, word)
    assert info.value.errno == code


@contextmanager
def unwrapped() -> Iterator[None]:
    """The test's own nursery wraps what leaves it."""
    try:
        yield
    except BaseExceptionGroup as group:
        (error,) = group.exceptions
        raise error from None


# With raw packets, over loopback: towards a listener that is deaf and dumb.


@contextmanager
def silent_listener() -> Iterator[Endpoint]:
    """A listener that the kernel's filter keeps everything from: it answers nothing, not even by a reset."""
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF_RET | BPF_K, 0 bytes
    program = struct.pack("HP", 1, ctypes.addressof(drop_all))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER
        yield Endpoint(*listener.getsockname())


def meet_at(monkeypatch: pytest.MonkeyPatch, target: Endpoint) -> int:
    """Have an attempt meet `target` from the returned port, with SYNs of an ordinary TTL."""
    port = choose_port()

    @asynccontextmanager
    async def agreed(context: AttemptContext) -> AsyncIterator[Rendezvous]:
        yield Rendezvous(port, Endpoint("127.0.0.1", port), target)

    async def no_ttl(context: AttemptContext, meeting: Rendezvous) -> None:
        return None

    monkeypatch.setattr(half_open, "agree", agreed)
    monkeypatch.setattr(half_open, "low_ttl_of", no_ttl)
    return port


async def said_syn(side: Side) -> Syn:
    while not side.said:
        await trio.sleep(0.01)
    assert side.said[0].name == "syn"
    return decode_syn_untrusted(side.said[0].body)


@needs_raw
async def test_the_kernel_takes_a_syn_ack_made_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_open, "MEETING_SECONDS", PATIENCE)
    with silent_listener() as target:
        port = meet_at(monkeypatch, target)
        async with round_with(target, "tcp-natblaster") as side, trio.open_nursery() as nursery:
            connections = []
            answered: list[HalfOpen] = []

            async def answer(context: AttemptContext, half: HalfOpen) -> None:
                answered.append(half)  # on the wire, the listener would answer it with a reset

            async def attempt() -> None:
                connections.append(await connect_half_open(side.context, answer))

            nursery.start_soon(attempt)
            theirs = await said_syn(side)
            # What the other side would send: its own numbers, and the answer to ours.
            ours = Syn(12345, 64240, 1460, 7, True, theirs.timestamp)
            side.hears("syn", encode_syn(ours))
            packet = build_syn_ack(target, Endpoint("127.0.0.1", port), ours, theirs)
            injector = Injector()
            await injector.send(lambda: packet, "127.0.0.1")
            injector.close()
        assert answered[0].local == Endpoint("127.0.0.1", port)
        assert (answered[0].ours, answered[0].theirs) == (theirs, ours)
        (connection,) = connections
        carrier = connection.carrier
        assert isinstance(carrier, PlainCarrier)
        assert (carrier.local, carrier.remote) == (Endpoint("127.0.0.1", port), target)
        assert carrier.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 1460
        carrier.close(abort=True)


@needs_raw
@pytest.mark.parametrize("when", ["before the word", "after it"])
async def test_a_cancelled_attempt_leaves_nothing(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    with silent_listener() as target:
        port = meet_at(monkeypatch, target)
        async with round_with(target, "tcp-natblaster") as side, trio.open_nursery() as nursery:
            nursery.start_soon(natblaster, side.context)
            theirs = await said_syn(side)
            if when == "after it":
                side.hears("syn", encode_syn(theirs))
            nursery.cancel_scope.cancel()
    assert capture_module._threads.borrowed_tokens == 0
    with socket.socket() as again:
        again.bind(("0.0.0.0", port))  # nobody holds it


@needs_raw
async def test_a_syn_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_listener() as target:
        meet_at(monkeypatch, target)
        async with round_with(target, "tcp-natblaster") as side:
            side.hears("syn", b"noise")
            with pytest.raises(OSError, match="the other side's SYN") as info:
                await natblaster(side.context)
    assert info.value.errno == errno.EPROTO
