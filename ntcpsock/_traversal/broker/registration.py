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
        #: A broker that was restarted has no room now: ask again at the next keep-alive.
        self.again_later = False
        self._accepted: Register | None = None

    def wish(self, registration: Register) -> None:
        """Something else from now on."""
        self.wanted = registration
        self.again_later = False

    def settle(self, registration: Register, answer: FromBroker) -> Refused | None:
        """The broker's answer to it. Returns it where something is lost that had been accepted."""
        if isinstance(answer, Registered):
            self._accepted = registration
        elif isinstance(answer, Refused):
            if registration != self._accepted:
                # A new wish was refused: what stood before it still stands.
                self.wanted = self._accepted
            elif answer.reason is Reason.BUSY:
                self.again_later = True
            else:
                self.wanted = self._accepted = None
                return answer
        return None
