"""A user-space NAT with its time, for tests without a network."""

from __future__ import annotations

from ipaddress import IPv4Network

import natlab_packets as p

from ntcpsock.testing.natlab.router.behaviour import Behaviour, TcpBehaviour, UdpBehaviour
from ntcpsock.testing.natlab.router.machine import Nat, Output

PUBLIC = "11.22.33.2"
INNER: p.Place = ("10.1.0.10", 4001)
OTHER: p.Place = ("10.1.0.11", 4001)
# The same address twice, and another one.
REMOTES: list[p.Place] = [("11.22.55.2", 1000), ("11.22.55.2", 2000), ("11.22.66.2", 1000)]
STRANGER: p.Place = ("11.22.77.2", 1000)


class World:
    """A NAT, its time, and what comes out of it."""

    def __init__(self, behaviour: Behaviour, seed: int = 1) -> None:
        private = [IPv4Network(net) for net in ("10.0.0.0/8", "192.168.0.0/16")]
        self.nat = Nat(behaviour, p.number(PUBLIC), p.number("10.1.0.1"), private, seed=seed)
        self.now = 100.0

    def out(self, packet: bytearray) -> bytes | None:
        return self._one(self.nat.outbound(packet, self.now), outward=True)

    def into(self, packet: bytearray) -> bytes | None:
        return self._one(self.nat.inbound(packet, self.now), outward=False)

    def answer(self, packet: bytearray) -> bytes | None:
        """What a packet from outside is answered with."""
        return self._one(self.nat.inbound(packet, self.now), outward=True)

    def turned(self, packet: bytearray) -> bytes | None:
        """What a packet from inside becomes inside."""
        return self._one(self.nat.outbound(packet, self.now), outward=False)

    def _one(self, outputs: list[Output], *, outward: bool) -> bytes | None:
        if not outputs:
            return None
        (output,) = outputs
        assert output.outward is outward
        p.assert_sound(output.data)
        return bytes(output.data)

    def mapped(self, protocol: str, inner: p.Place, remote: p.Place, sequence: int = 500) -> int | None:
        """Send something out; the public port that it comes from."""
        packet = p.udp(inner, remote, b"x") if protocol == "udp" else p.tcp(inner, remote, p.SYN, sequence)
        sent = self.out(packet)
        if sent is None:
            return None
        (host, port), target = p.ends(sent)
        assert (host, target) == (PUBLIC, remote)
        return port

    def lets_in(self, protocol: str, remote: p.Place, port: int, inner: p.Place = INNER) -> bool:
        target = (PUBLIC, port)
        packet = p.udp(remote, target, b"y") if protocol == "udp" else p.tcp(remote, target, p.SYN, 900)
        got = self.into(packet)
        assert got is None or p.ends(got) == (remote, inner)
        return got is not None


def both(**words: object) -> Behaviour:
    return Behaviour(udp=UdpBehaviour(**words), tcp=TcpBehaviour(**words))  # type: ignore[arg-type]
