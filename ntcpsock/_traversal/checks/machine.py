"""Connectivity checks of one dial, without sockets and without a clock (RFC 8445 section 7, RFC 7675).

Datagrams and the time go in, datagrams and events come out; extra calls do nothing. Both sides check at once: a check
that comes too early for the other side's NAT is lost, opens our own NAT, and the other side's check, when it
arrives, triggers another one at once. The controlling side nominates the first pair that is valid. From then on both
keep asking for consent, which keeps the NATs awake and notices when the other side's address has changed.

What a stranger may do: nothing without the dial's credentials; with a check that was overheard, make us send a few
datagrams, no larger than his, to where he sends from.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection

from ntcpsock._address import Endpoint
from ntcpsock._errors import BadMessage
from ntcpsock._traversal.checks.message import (
    Credentials,
    Request,
    Response,
    candidate_priority,
    decode_request_untrusted,
    decode_response_untrusted,
    encode_error,
    encode_request,
    encode_success,
    new_tie_breaker,
    new_transaction_id,
    pair_priority,
)
from ntcpsock._traversal.checks.pairs import Event, Heard, Lost, Nominated, Outgoing, Pair, Valid, Way
from ntcpsock._traversal.checks.replays import Replays
from ntcpsock._traversal.checks.schedule import Schedule
from ntcpsock._traversal.stun.constants import ErrorCode, MessageClass

#: Seconds between the first checks of two pairs (Ta). RFC 8445 section 14.2 says 50 ms and forbids less than 5 where
#: nothing is known of the path; our pairs are few, and the order in which they start is the order of hope.
TA = 0.02

# Seconds until a check without an answer is repeated, and how much longer the next one waits (RFC 8445 section 14.3
# says 500 ms where the round trip is not known; ours is).
SHORTEST_RTO = 0.25
RTO_RTTS = 2.0
LONGEST_RTO = 1.6

#: Checks of one pair, at a peer's proven address; and where only a check that came from there speaks for it.
MAX_TRIES = 16
REFLEXIVE_TRIES = 4
#: Sources that were not announced (peer-reflexive, RFC 8445 section 7.3.1.3), in one dial.
MAX_REFLEXIVE = 8
# Triggered checks of one pair are so many seconds apart.
TRIGGER_PAUSE = 0.02
# Transactions of one pair whose answer still counts.
_MAX_TRANSACTIONS = 8

#: RFC 7675 section 5.1, seconds: between two checks, times 0.8 to 1.2, and until a silent pair may not be used.
CONSENT_INTERVAL = 5.0
CONSENT_TIMEOUT = 30.0
# So many intervals without an answer raise doubts about a pair; the other side's next check comes within 1.2.
DOUBTFUL_INTERVALS = 1.5
# With fresh doubts about the pair, seconds between two checks.
SHORTEST_CONSENT_INTERVAL = 0.5

_rng = random.SystemRandom()


class ChecksMachine:
    """The checks of one side. All times are seconds on the caller's clock.

    controlling: whether this side nominates; trusted: hosts where the other side is known to be; rtt: of the path,
    estimated; low_ttl: of the first checks of pairs added with `low_until`; tie_breaker: for tests.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        controlling: bool,
        now: float,
        rtt: float = 0.1,
        pace: float = TA,
        trusted: Collection[str] = (),
        low_ttl: int = 2,
        consent_interval: float = CONSENT_INTERVAL,
        tie_breaker: int | None = None,
    ) -> None:
        self._credentials = credentials
        self.controlling = controlling
        self._tie_breaker = new_tie_breaker() if tie_breaker is None else tie_breaker
        self._rto = min(LONGEST_RTO, max(SHORTEST_RTO, RTO_RTTS * rtt))
        self._trusted = frozenset(trusted)
        self._low_ttl = low_ttl
        self._consent_interval = consent_interval
        self._pairs: dict[Way, Pair] = {}
        self._by_transaction: dict[bytes, Pair] = {}
        self._schedule = Schedule(now, pace)
        self._reflexive = 0
        self._requests = Replays()
        self._outgoing: list[Outgoing] = []
        self._events: list[Event] = []  # few at any time, and an empty deque takes 600 bytes
        self._selected: Pair | None = None
        self._nominating: Pair | None = None
        self._consent_due = math.inf
        self._consent_asked = -math.inf
        self._closed = False
        #: How often something was refused, by reason.
        self.refused: Counter[str] = Counter()
        #: Checks sent in all.
        self.sent = 0

    # -- what to check ---------------------------------------------------------------------------

    def add_pair(
        self,
        base: int,
        remote: Endpoint,
        *,
        now: float,
        kind: str = "srflx",
        preference: int = 65535,
        tries: int = MAX_TRIES,
        delay: float = 0.0,
        low_for: float = 0.0,
    ) -> bool:
        """Check `remote` from socket `base`, first after `delay` seconds. Whether it is new.

        kind, preference: of the other side's candidate; low_for: seconds in which checks carry the low TTL.
        """
        if (base, remote) in self._pairs or self._selected is not None or self._closed:
            return False
        self._add(base, remote, kind, preference, tries, now + delay, now + low_for if low_for else -math.inf)
        return True

    def _add(
        self,
        base: int,
        remote: Endpoint,
        kind: str,
        preference: int,
        tries: int,
        due: float,
        low_until: float = -math.inf,
    ) -> Pair:
        theirs = candidate_priority(kind, preference)
        ours = candidate_priority("host", 65535 - base % 256)
        priority = pair_priority(ours, theirs) if self.controlling else pair_priority(theirs, ours)
        check_priority = candidate_priority("prflx", 65535 - base % 256)
        pair = Pair(base, remote, priority, check_priority, tries, due, low_until, wait=self._rto)
        self._pairs[pair.way] = pair
        self._schedule.set(pair, due)
        return pair

    def probe(self, now: float) -> None:
        """Ask for consent early: what was sent has brought nothing back."""
        pair = self._selected
        if pair is not None and not self._closed:
            self._consent_due = min(
                self._consent_due, max(now, self._consent_asked + SHORTEST_CONSENT_INTERVAL)
            )

    def is_doubtful(self, now: float) -> bool:
        """Whether the pair in use has not been answered for longer than two checks of either side are apart."""
        pair = self._selected
        return pair is not None and now - pair.answered > DOUBTFUL_INTERVALS * self._consent_interval

    def close(self) -> None:
        """No more checks, no more answers."""
        self._closed = True
        self._outgoing.clear()
        self._consent_due = math.inf
        self._schedule.clear()

    # -- in --------------------------------------------------------------------------------------

    def expects(self, transaction_id: bytes) -> bool:
        """Whether one of our checks waits for a response with this id."""
        return transaction_id in self._by_transaction

    def handle_datagram(self, base: int, data: bytes, source: Endpoint, now: float) -> bool:
        """Take a STUN message that arrived at socket `base`. Whether it was one of this dial's; refusals are
        counted."""
        if self._closed or len(data) < 2:
            return False
        try:
            if _class_of(data) == MessageClass.REQUEST:
                self._requested(base, decode_request_untrusted(data, self._credentials), source, now)
            else:
                self._answered(base, decode_response_untrusted(data, self._credentials), source, now)
        except BadMessage as error:
            self.refused[str(error)[:40]] += 1
            return False
        return True

    def _requested(self, base: int, request: Request, source: Endpoint, now: float) -> None:
        way = (base, source)
        if self._requests.is_replayed(request.transaction_id, way):
            raise BadMessage("a replayed check")
        if request.message.unknown_required:
            answer = encode_error(self._credentials, request.message, ErrorCode.UNKNOWN_ATTRIBUTE)
            self._outgoing.append(Outgoing(base, source, answer))
            return
        if request.controlling == self.controlling and not self._settle_conflict(base, request, source):
            return
        pair = self._pairs.get(way) or self._reflexive_pair(base, source, request, now)
        answer = encode_success(self._credentials, request.message, source)
        self._outgoing.append(Outgoing(base, source, answer))
        if request.nominates and not self.controlling:
            pair.wanted = True
        if not pair.heard:
            pair.heard = True
            pair.low_until = -math.inf
            self._events.append(Heard(base, source))
        if pair.valid:
            self._consider(pair, now)
        if not pair.valid or (pair is not self._selected and self._selected is not None):
            self._trigger(pair, now)

    def _settle_conflict(self, base: int, request: Request, source: Endpoint) -> bool:
        """RFC 8445 section 7.3.1.1: whether the request counts, because we take the other role."""
        keeps = self._tie_breaker >= request.tie_breaker
        if keeps == self.controlling:
            answer = encode_error(self._credentials, request.message, ErrorCode.ROLE_CONFLICT)
            self._outgoing.append(Outgoing(base, source, answer))
            return False
        self.controlling = not self.controlling
        return True

    def _reflexive_pair(self, base: int, source: Endpoint, request: Request, now: float) -> Pair:
        if self._reflexive >= MAX_REFLEXIVE and not self._forget_reflexive():
            raise BadMessage("too many sources of one dial")
        self._reflexive += 1
        tries = MAX_TRIES if source.host in self._trusted else REFLEXIVE_TRIES
        pair = self._add(base, source, "prflx", 65535, tries, math.inf)
        pair.priority = pair_priority(candidate_priority("host", 65535), request.priority)
        return pair

    def _forget_reflexive(self) -> bool:
        """Of those that were heard and never answered, the oldest makes room, once a pair is in use."""
        if self._selected is None:
            return False
        for way, pair in self._pairs.items():
            if not pair.valid and pair is not self._selected:
                for transaction in pair.transactions:
                    self._by_transaction.pop(transaction, None)
                pair.due = math.inf
                del self._pairs[way]
                self._reflexive -= 1
                return True
        return False

    def _answered(self, base: int, response: Response, source: Endpoint, now: float) -> None:
        pair = self._by_transaction.get(response.transaction_id)
        if pair is None:
            raise BadMessage("a response to nothing")
        # RFC 8445 section 7.2.5.2.1: it comes from where the check went, and arrives where that left.
        if pair.way != (base, source):
            raise BadMessage("a response from elsewhere")
        del self._by_transaction[response.transaction_id]
        sent, as_controlling = pair.transactions.pop(response.transaction_id)
        if response.code == ErrorCode.ROLE_CONFLICT:
            # RFC 8445 section 7.2.5.1: take the other role than it was sent in, with a new tie-breaker, and ask again.
            if self.controlling == as_controlling:
                self.controlling = not self.controlling
                self._tie_breaker = new_tie_breaker()
            self._schedule.set(pair, now)
            return
        if response.code is not None or response.mapped is None:
            pair.tries = pair.sent
            self._schedule.set(pair, math.inf)
            return
        pair.answered = now
        if pair is self._selected:
            return
        if not pair.valid:
            pair.valid = True
            self._events.append(Valid(base, source, now - sent, response.mapped))
            self._schedule.set(pair, math.inf)
        if response.transaction_id in pair.nominating:
            self._select(pair, now)
        else:
            self._consider(pair, now)

    def _consider(self, pair: Pair, now: float) -> None:
        """A valid pair: nominate it, or take the other side's nomination."""
        if not self.controlling:
            # The other side nominates again where its own address has changed.
            if pair.wanted and pair is not self._selected:
                self._select(pair, now)
        elif self._selected is None:
            if self._nominating is None:
                self._nominating = pair
                self._check(pair, now)
        elif pair is not self._selected and self._is_silent(self._selected, now):
            # The other side has gone on at another address.
            self._select(pair, now)

    def _is_silent(self, pair: Pair, now: float) -> bool:
        """Whether a check of the pair in use is unanswered for longer than an answer takes."""
        unanswered = [sent for sent, _ in pair.transactions.values() if sent > pair.answered]
        return bool(unanswered) and now - min(unanswered) > self._rto

    def _select(self, pair: Pair, now: float) -> None:
        self._selected, self._nominating = pair, None
        for other in self._pairs.values():
            other.wanted = False
        self._schedule.clear()
        pair.answered = max(pair.answered, now)
        self._plan_consent(now)
        self._events.append(Nominated(pair.base, pair.remote))

    # -- out -------------------------------------------------------------------------------------

    def handle_timeout(self, now: float) -> None:
        """Do what is due at `now`."""
        if self._closed:
            return
        while (pair := self._schedule.take(now)) is not None:
            self._check(pair, now)
        if now >= self._consent_due and self._selected is not None:
            if now - self._selected.answered >= CONSENT_TIMEOUT:
                self.close()
                self._events.append(Lost())
                return
            self._consent_asked = now
            self._send(self._selected, now)
            self._plan_consent(now)

    def _check(self, pair: Pair, now: float) -> None:
        if pair.sent >= pair.tries and not pair.valid:
            pair.due = math.inf
            return
        low = now < pair.low_until
        self._send(pair, now, low=low)
        pair.wait = min(LONGEST_RTO, pair.wait * 2) if pair.sent > 1 and not low else pair.wait
        due = now + pair.wait
        # The low TTL has opened our own NAT; the first check that may arrive is not to be late.
        self._schedule.set(pair, min(due, pair.low_until) if low else due)

    def _send(self, pair: Pair, now: float, *, low: bool = False) -> None:
        transaction = new_transaction_id()
        nominate = self.controlling and pair.valid and (pair is self._nominating or pair is self._selected)
        data = encode_request(
            self._credentials,
            transaction,
            priority=pair.check_priority,
            controlling=self.controlling,
            tie_breaker=self._tie_breaker,
            nominate=nominate,
        )
        if nominate and pair is self._nominating:
            pair.nominating.add(transaction)
        pair.transactions[transaction] = now, self.controlling
        self._by_transaction[transaction] = pair
        while len(pair.transactions) > _MAX_TRANSACTIONS:
            oldest = next(iter(pair.transactions))
            del pair.transactions[oldest]
            self._by_transaction.pop(oldest, None)
        pair.sent += 1
        self.sent += 1
        self._outgoing.append(Outgoing(pair.base, pair.remote, data, self._low_ttl if low else None))

    def _trigger(self, pair: Pair, now: float) -> None:
        """RFC 8445 section 7.3.1.4: what came from there says that a check gets through now."""
        if now - pair.triggered < TRIGGER_PAUSE:
            return
        pair.triggered = now
        if pair.sent >= pair.tries and pair.tries < REFLEXIVE_TRIES:
            pair.tries = REFLEXIVE_TRIES  # announced and unproven: it has proven itself somewhat
        if pair.sent < pair.tries or pair.valid:
            self._check(pair, now)

    def _plan_consent(self, now: float) -> None:
        self._consent_due = now + self._consent_interval * _rng.uniform(0.8, 1.2)

    def datagrams_to_send(self) -> list[Outgoing]:
        """What to send now; each is handed out once."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def next_timeout(self) -> float | None:
        """When `handle_timeout` has something to do, absolute; None for never."""
        due = min(self._schedule.next_due(), self._consent_due)
        return None if due == math.inf else due

    def next_event(self) -> Event | None:
        """The next event, each once; None for none."""
        return self._events.pop(0) if self._events else None

    @property
    def selected(self) -> Way | None:
        """The nominated pair."""
        return None if self._selected is None else self._selected.way

    @property
    def is_exhausted(self) -> bool:
        """Whether every pair has been given up and none was heard or answered."""
        return self._selected is None and all(
            pair.due == math.inf and not pair.valid and not pair.heard for pair in self._pairs.values()
        )


def _class_of(data: bytes) -> int:
    return (data[0] << 1 & 2) | (data[1] >> 4 & 1)
