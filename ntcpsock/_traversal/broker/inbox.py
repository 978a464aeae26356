"""The client's way in: opening frames, whose they are, which session they belong to, and replays."""

from __future__ import annotations

from collections import Counter

from ntcpsock._errors import BadMessage
from ntcpsock._traversal.broker.fields import NO_SESSION
from ntcpsock._traversal.broker.frame import Sealer
from ntcpsock._traversal.broker.message import BrokerEnvelope, Welcome, decode_from_broker
from ntcpsock._traversal.broker.replay import ReplayWindow


class Inbox:
    """What comes from the broker, and what was dropped on the way."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer
        #: Datagrams that were not taken, by reason.
        self.dropped: Counter[str] = Counter()
        self._session = NO_SESSION
        self._window = ReplayWindow()

    def open(self, data: bytes, broker_key: bytes | None) -> BrokerEnvelope:
        """What is in a frame of the broker's. Raises BadMessage."""
        sender, payload = self._sealer.open_untrusted(data)
        if sender != broker_key:
            raise BadMessage("frame of another sender")
        return decode_from_broker(payload)

    def drop(self, reason: str) -> None:
        """A datagram is not taken."""
        self.dropped[reason] += 1

    def accept_welcome(self, envelope: BrokerEnvelope, welcome: Welcome) -> bool:
        """Whether a Welcome is new; from now on its session is the one."""
        if self._session != welcome.session:
            self._session = welcome.session
            self._window = ReplayWindow()
        return self._is_new(envelope)

    def accept(self, envelope: BrokerEnvelope) -> bool:
        """Whether something else is of this session, and new."""
        if envelope.session != self._session:
            self.drop("other session")
            return False
        return self._is_new(envelope)

    def _is_new(self, envelope: BrokerEnvelope) -> bool:
        if self._window.accept(envelope.counter):
            return True
        self.drop("replay")
        return False
