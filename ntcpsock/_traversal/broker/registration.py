"""What a node wants to be registered with, kept over restarts of the broker."""

from __future__ import annotations

from ntcpsock._traversal.broker.message import FromBroker, Reason, Refused, Register, Registered


class KeptRegistration:
    """The wish, and what the broker has accepted so far."""

    def __init__(self) -> None:
        #: To be said in every new session.
        self.wanted: Register | None = None
        #: The number of the latest request for it.
        self.request = 0
        # A broker that was restarted has no room now: ask again at the next keep-alive.
        self._again_later = False
        self._accepted: Register | None = None

    def wish(self, registration: Register) -> None:
        """Something else from now on."""
        self.wanted = registration
        self._again_later = False

    def take_postponed(self) -> Register | None:
        """What is to be asked for again now, at a keep-alive."""
        again, self._again_later = self._again_later, False
        return self.wanted if again else None

    def settle(self, registration: Register, answer: FromBroker) -> Refused | None:
        """The broker's answer to it. Returns it where something is lost that had been accepted."""
        if isinstance(answer, Registered):
            self._accepted = registration
        elif isinstance(answer, Refused):
            if registration != self._accepted:
                # A new wish was refused: what stood before it still stands.
                self.wanted = self._accepted
            elif answer.reason in (Reason.BUSY, Reason.OVER_QUOTA):
                self._again_later = True
            else:
                self.wanted = self._accepted = None
                return answer
        return None
