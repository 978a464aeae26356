"""How the two ends of an idle connection give up their cores, and how they tell each other that they are there.

A core takes 28 KiB, whatever it does. Where nothing was said for a while, the client asks whether both shall do
without, and gives its core nothing new until it has an answer. A server that has nothing on its way says yes; it keeps
its core, but gives it nothing new either. With the yes the client gives up its core and says so with a sign of life,
with which the server gives up its own.

Who has something to say makes a core of the next generation (`generations`) and says it: nobody waits for a handshake.
Who gets a packet of that generation makes one, too. Until then both say every now and then that they are alive.

These words are datagrams of their own, for what is said in QUIC may stand behind what nobody reads. One looks like a
packet with a short header (RFC 9000 section 17.3.1), and has an id and an authentication tag that belong to direction
and generation. A question is repeated until it is answered, and always gets the same answer; a sign of life is good
once.
"""

from __future__ import annotations

import hmac
import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from ntcpsock._session.quic.generations import ID_LENGTH, Secrets, connection_id, derive

if TYPE_CHECKING:
    from collections.abc import Callable

# Seconds after which a connection that was not used meanwhile becomes dormant, and at most twice as long. What is said
# within seconds finds the congestion window as it was left; later ones begin anew, as with TCP: RFC 5681 section 4.1.
REST_AFTER: Final = 15.0
# Seconds until a new look where only an acknowledgement was missing: of a sign of life, perhaps.
RETRY_AFTER: Final = 1.0
# A question is repeated after so many seconds and round trips, and then after twice the time, up to so many seconds.
PATIENCE: Final = 0.05
ROUND_TRIPS: Final = 2.0
LONGEST_PATIENCE: Final = 8.0

_WORD: Final = struct.Struct(f"!B{ID_LENGTH}sBI")
_FIRST_BYTE: Final = 0x40
_TAG_LENGTH: Final = 16
WORD_LENGTH: Final = _WORD.size + _TAG_LENGTH


class Says(IntEnum):
    """What a word says. Its number: of the question, and of the sign of life."""

    ASK = 1
    YES = 2
    NO = 3
    ALIVE = 4


class Word(NamedTuple):
    says: Says
    number: int


#: awake: there is a core, and nothing is agreed. asking (client): there is no answer yet. agreed (server): the client
#: may have given up its core. dormant: there is no core.
State = Literal["awake", "asking", "agreed", "dormant"]

#: A packet of the next core, of the last one (while there is none), or of none that is known.
Packet = Literal["next", "last", "unknown"]


class Dormancy:
    """Of one connection, after its handshake. secrets: of the next core; next_host_id: under which its packets arrive;
    used: whether anything of the application was sent or received; to_say: the word to be sent; round_trip: as the last
    core knew it, in seconds; last_word: code and reason of the end that is to be told with the next core."""

    __slots__ = (
        "_alive",
        "_host_id",
        "_look_at",
        "_our_id",
        "_patience",
        "_peer_alive",
        "_peer_id",
        "_question",
        "is_client",
        "last_word",
        "next_host_id",
        "round_trip",
        "secrets",
        "state",
        "to_say",
        "used",
    )

    def __init__(self, is_client: bool, secrets: Secrets, host_id: bytes, now: float) -> None:
        """secrets: of the core that there is; host_id: under which its packets arrive."""
        self.is_client = is_client
        self.round_trip: float | None = None
        self.last_word: tuple[int, str] | None = None
        self.next_host_id = host_id
        self.secrets = secrets
        self._begin(now)

    def _begin(self, now: float) -> None:
        """A core's time begins. `secrets` are those of the next one from here on."""
        self.state: State = "awake"
        self.used = True
        self.to_say: Word | None = None
        self.secrets = self.secrets.following()
        self._host_id, self.next_host_id = self.next_host_id, connection_id(self.secrets.received)
        self._our_id = derive(self.secrets.sent, b"word id", ID_LENGTH)
        self._peer_id = derive(self.secrets.received, b"word id", ID_LENGTH)
        self._alive = self._peer_alive = self._question = 0
        self._look_at = now + REST_AFTER
        self._patience = 0.0

    # -- the client asks

    def due_at(self) -> float | None:
        """When to `look`, None for never."""
        if not self.is_client or self.state not in ("awake", "asking"):
            return None
        return self._look_at

    def look(self, now: float, round_trip: float, quiet: Callable[[], bool | None]) -> None:
        """Ask, where it is time to. round_trip: seconds; quiet: as in `hear`."""
        due = self.due_at()
        if due is None or now < due:
            return
        if self.state == "asking":
            self._patience = min(2 * self._patience, LONGEST_PATIENCE)
            self._look_at = now + self._patience
            self._say(Says.ASK, self._question)
            return
        was_used, self.used = self.used, False
        is_quiet = not was_used and quiet()
        self._look_at = now + (RETRY_AFTER if is_quiet is None else REST_AFTER)
        if is_quiet:
            self.state = "asking"
            self._patience = PATIENCE + ROUND_TRIPS * round_trip
            self._look_at = now + self._patience
            self._question += 1
            self._say(Says.ASK, self._question)

    # -- words

    @property
    def listens(self) -> bool:
        """Whether packets of the next core may come."""
        return self.state != "awake"

    @property
    def may_wake(self) -> bool:
        """Whether what is to be said belongs to the next core."""
        return self.state in ("agreed", "dormant")

    def say_alive(self) -> None:
        self._alive += 1
        self._say(Says.ALIVE, self._alive)

    def _say(self, says: Says, number: int) -> None:
        self.to_say = Word(says, number)

    def words(self) -> list[bytes]:
        """The datagram of what is to be said, if anything is."""
        word, self.to_say = self.to_say, None
        if word is None:
            return []
        message = _WORD.pack(_FIRST_BYTE, self._our_id, *word)
        return [message + derive(self.secrets.sent, message, _TAG_LENGTH)]

    def read(self, datagram: bytes) -> Word | None:
        """The peer's word, if it is one."""
        if len(datagram) != WORD_LENGTH or datagram[1 : 1 + ID_LENGTH] != self._peer_id:
            return None
        tag = derive(self.secrets.received, datagram[:-_TAG_LENGTH], _TAG_LENGTH)
        if not hmac.compare_digest(tag, datagram[-_TAG_LENGTH:]):
            return None
        _, _, says, number = _WORD.unpack_from(datagram)
        return Word(Says(says), number) if says in iter(Says) else None

    def hear(self, word: Word, quiet: Callable[[], bool | None]) -> bool:
        """Take a word of the peer's: whether it is a new sign of life. `state` may change.

        quiet: whether nothing is on this end's way; None where it soon may be.
        """
        match word.says:
            case Says.ASK if not self.is_client:
                self._answer(word.number, quiet)
            case Says.YES if self.state == "asking" and word.number == self._question:
                self.state = "dormant"
                self.say_alive()
            case Says.NO if self.state == "asking" and word.number == self._question:
                self.state = "awake"
            case Says.ALIVE if self.may_wake and word.number > self._peer_alive:
                self._peer_alive = word.number
                self.state = "dormant"
                return True
        return False

    def _answer(self, number: int, quiet: Callable[[], bool | None]) -> None:
        if self.state == "awake" and number > self._question:
            is_quiet = quiet()
            if is_quiet is None:
                return  # it will be asked again
            self._question = number
            if is_quiet:
                self.state = "agreed"
        if number == self._question and self.state in ("awake", "agreed"):
            self._say(Says.NO if self.state == "awake" else Says.YES, number)

    # -- packets

    def packet(self, datagram: bytes) -> Packet:
        """Of which core a packet is, by its connection id."""
        found = datagram[1 : 1 + ID_LENGTH]
        if found == self.next_host_id:
            return "next"
        return "last" if found == self._host_id else "unknown"

    def wake(self, now: float) -> None:
        """There is a core that was made of `secrets`."""
        self._begin(now)
