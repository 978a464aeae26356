"""What the lab tests of hostile peers run: nodes that lie in card and offer, and a victim that counts packets."""

from __future__ import annotations

import select
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

import trio
from peer_programs import PORT, wait_registered

from ntcpsock._config import Config
from ntcpsock._errors import NTCPError
from ntcpsock._registration import Registration
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.prediction import Prediction, encode_prediction
from ntcpsock._traversal.punch.message import Candidate, Offer, Signal, encode_sealed_payload
from ntcpsock.trio import open_node

_ETH_P_ALL = 3
_OUTGOING = 4  # linux/if_packet.h


@dataclass(frozen=True)
class Packet:
    """One IPv4 packet that arrived. flags: TCP's, 0 for other protocols."""

    protocol: int
    source: str
    target: str
    port: int
    flags: int

    @property
    def is_syn(self) -> bool:
        return self.protocol == socket.IPPROTO_TCP and self.flags & 0x12 == 0x02


def watch(targets: tuple[str, ...], ready: str, stop: str) -> list[Packet]:
    """What arrives for some addresses until the file `stop` exists; makes the file `ready` when it has begun."""
    seen = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL)) as sock:
        sock.setblocking(False)
        Path(ready).touch()
        while not Path(stop).exists():
            select.select([sock], [], [], 0.05)
            while True:
                try:
                    data, address = sock.recvfrom(2048)
                except BlockingIOError:
                    break
                if address[2] != _OUTGOING and address[1] == 0x0800:
                    seen.append(_parse(data))
    return [packet for packet in seen if packet.target in targets]


def _parse(data: bytes) -> Packet:
    length = (data[0] & 15) * 4
    port = struct.unpack_from("!H", data, length + 2)[0] if data[9] in (6, 17) else 0
    flags = data[length + 13] if data[9] == 6 else 0
    return Packet(data[9], socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20]), port, flags)


def spread(hosts: list[str], count: int, first: int = 30000) -> tuple[Candidate, ...]:
    """`count` candidates over some hosts, each with a port of its own."""
    return tuple(
        Candidate("srflx", "tcp", hosts[number % len(hosts)], first + number) for number in range(count)
    )


def dial_with_lies(config: Config, name: str, hosts: list[str], dials: int, rounds: int) -> int:
    """Dials in which every round names other ports of `hosts`, joint rounds too, with words that aim elsewhere.
    Gives the number of offers that the broker has delivered."""

    async def main() -> int:
        sent = 0
        async with open_node(config) as node:
            await wait_registered(node, name)
            for number in range(dials):
                dial = Dial(await node.resolve(name), name, PORT)
                for round_number in range(1, rounds + 1):
                    ports = 30000 + (number * rounds + round_number) * 8 % 30000
                    candidates = spread(hosts, 8, ports)
                    technique = "tcp-predict" if round_number > 3 else ""
                    offer = Offer(
                        dial.dial_id, dial.token, PORT, round_number, candidates, technique=technique
                    )
                    payload = encode_sealed_payload(offer)
                    await node.introductions.introduce(dial, payload)
                    sent += 1
                    if technique:
                        word = encode_prediction(Prediction("band", hosts[0], 1024, 65535))
                        signal = Signal(dial.dial_id, round_number, "prediction", word)
                        await node.introductions.introduce(dial, encode_sealed_payload(signal))
        return sent

    return trio.run(main)


def listen_with_lies(config: Config, hosts: list[str]) -> None:
    """A node whose card names `hosts` in place of its own candidates. Until killed."""
    card = Registration.card

    def lying_card(registration: Registration) -> bytes | None:
        warm = registration._node.listening_port
        if warm is not None:
            warm.candidates = spread(hosts, 8)
        return card(registration)

    Registration.card = lying_card  # type: ignore[method-assign, assignment]

    async def main() -> None:
        async with open_node(config) as node, await node.open_listener(PORT):
            await trio.sleep_forever()

    trio.run(main)


def dial_liar(config: Config, name: str, count: int) -> list[str]:
    """What comes of `count` dials: each an error's text, or "connected"."""

    async def main() -> list[str]:
        outcomes = []
        async with open_node(config) as node:
            await wait_registered(node, name)
            for _ in range(count):
                try:
                    (await node.open_stream(name, PORT)).reset()
                    outcomes.append("connected")
                except NTCPError as error:
                    outcomes.append(str(error))
        return outcomes

    return trio.run(main)
