"""Takes the core's own congestion control out of its hands: its window gets vast, and stays so. `bbr` decides instead.

qh3's core has CUBIC inside, and no way to put something else in its place. Three things that it does are used, and
`tests/test_quic_core.py` says so where one of them changes:

1. The window that it begins with is two datagrams, of the size that it is made with. So it is made with a vast one, and
   told the real one before it sends anything.
2. It reacts to no loss, and grows by no acknowledgement, of what was sent before the last loss was noticed (RFC 9002
   section 7.3.2). So it is made to notice one in a far future: of a PING that we have kept to ourselves.
3. What would reset the window otherwise, idleness and persistent congestion, it tells by the time that we tell it:
   `core_clock`.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from qh3._hazmat import QuicConnectionCore

# The size of datagrams, in bytes, that a core is made with: nothing is ever made of that size.
VAST: Final = sys.maxsize >> 3
LARGEST: Final = 65535  # of UDP's
# Seconds on the core's clock that never come.
FAR: Final = 1e9
# Seconds by which the PINGs are sent later than a loss was noticed, in any case.
LATER: Final = 1e-6
_FIRST_PING: Final = 1 << 32
_RETRY: Final = 0.2  # seconds
# Seconds of silence behind the PINGs: at first, and at most, after it was too short twice or more.
FIRST_SILENCE: Final = 0.002
LONGEST_SILENCE: Final = 0.064


def limit(core: QuicConnectionCore, size: int) -> None:
    """Tell a core that has heard nothing of its peer yet to send at most `size` bytes at once. Limits only shrink."""
    core.apply_peer_transport_parameters(0, 0, 0, 0, 0, 0, 3, 0.025, None, None, None, 2, False, size)


class CoreWindow:
    """released: whether the core's window stands still; silent_until: seconds, nothing is to be sent before.

    What the peer acknowledges together with something two packets behind the missing PING makes it count as lost there
    and then, in the present. So nothing leaves for a while behind the PINGs, longer with each trial.
    """

    def __init__(self) -> None:
        self.released = False
        self.silent_until = -math.inf
        self._silence = FIRST_SILENCE
        self._ping = _FIRST_PING
        self._retry_at = math.inf
        self._window = sys.maxsize
        self._has_tried = self._waits = self._answered = False

    def start(self, now: float, round_trip: float) -> None:
        """The handshake is done. The first words are not to wait for the silence."""
        self._retry_at = now + max(_RETRY, 3 * round_trip)

    def wants_pings(self, core: QuicConnectionCore, now: float) -> bool:
        """Whether it is time to try: once, and then where the window has shrunk just now, with what was received.

        A loss that is noticed in the round trip after the PINGs, of something that was sent before them, would start
        the recovery that theirs is to start. Behind a loss just noticed there is none such."""
        before, self._window = self._window, core.congestion_window
        return not self.released and now >= self._retry_at and (self._window < before or not self._has_tried)

    def pings(
        self, core: QuicConnectionCore, now: float, core_time: float, round_trip: float
    ) -> bytes | None:
        """Lose one PING and return another, to be sent behind everything else. round_trip: seconds."""
        self._retry_at = now + max(_RETRY, 3 * round_trip)
        self._has_tried = True
        self._ping += 2
        core_time += LATER
        core.send_ping(self._ping - 1)
        core.poll_transmit(core_time)
        core.send_ping(self._ping)
        transmit = core.poll_transmit(core_time)
        if transmit is None:
            return None
        self._waits = True
        self.silent_until = now + self._silence
        self._silence = min(4 * self._silence, LONGEST_SILENCE)
        ping: bytes = transmit[0]
        return ping

    @property
    def waits(self) -> bool:
        """Whether `release` is to be called after each datagram."""
        return self._waits

    def on_ping_acknowledged(self, ping: int) -> None:
        if ping == self._ping:
            self._answered = True

    def release(self, core: QuicConnectionCore, may: bool) -> None:
        """After the core has received one datagram: if it was the answer, and the other PING is still to be missed.

        may: False while the core tries a larger datagram, which would count as lost, too."""
        if not self._answered:
            return
        self._answered = self._waits = False
        if not may:
            return
        before = core.congestion_window
        core.handle_timer(FAR)
        self.released = core.congestion_window < before
