"""Who is connected: one small record for each instance of each node, and who may know of it.

Pure: `now` comes in, nothing goes out.
"""

from __future__ import annotations

from ntcpsock._servers.names import NameRecord, NameStore
from ntcpsock._servers.sources import Source
from ntcpsock._traversal.broker.message import (
    MAX_PROVED,
    MIN_TTL,
    Register,
    allowed_digest,
    allows,
    key_digest,
)
from ntcpsock._traversal.broker.replay import ReplayWindow

#: Instances of one key: processes that share a state directory.
MAX_INSTANCES = 16


class NodeRecord:
    """One instance of a node, at one proved address."""

    __slots__ = (
        "allow",
        "card",
        "expires",
        "hidden",
        "instance",
        "key",
        "names",
        "ports",
        "proved",
        "received",
        "registered",
        "registration",
        "sent",
        "session",
        "source",
        "ttl",
    )

    def __init__(self, key: bytes, instance: bytes, session: bytes, source: Source, now: float) -> None:
        self.key = key
        self.instance = instance
        self.session = session
        self.source = source
        #: Counters of the frames that it sent, over all its hellos.
        self.received = ReplayWindow()
        #: The counter of our last frame to it.
        self.sent = 0
        self.ttl = MIN_TTL
        self.expires = now + MIN_TTL
        #: Whether nobody is to be told where it is.
        self.hidden = False
        #: Whether others are introduced to it.
        self.registered = False
        #: The counter of the latest Register or Bye: one that was overtaken on the way is void.
        self.registration = 0
        self.names: tuple[str, ...] = ()
        self.ports: tuple[int, ...] = ()
        self.card: bytes | None = None
        self.allow: bytes | None = None
        #: Further addresses that it has proved, the newest last, and until when each is believed.
        self.proved: tuple[tuple[str, float], ...] = ()

    def prove(self, host: str, now: float) -> None:
        """It is at `host` too."""
        others = [entry for entry in self.proved if entry[0] != host and entry[1] > now]
        self.proved = (*others, (host, now + self.ttl))[-MAX_PROVED:]

    def whereabouts(self, now: float) -> tuple[str, tuple[str, ...]]:
        """What others are told: the address of its session, and where it is beside; nothing of one that hides."""
        if self.hidden:
            return "", ()
        here = self.source.host
        return here, tuple(host for host, until in self.proved if until > now and host != here)

    def register(self, counter: int, registration: Register) -> None:
        """Replace what it offered before."""
        self.registered = True
        self.registration = counter
        self.names = registration.names
        self.ports = registration.ports
        self.card = registration.card
        self.allow = registration.allow
        self.ttl = registration.ttl

    def leave(self, counter: int) -> None:
        """After Bye: no introductions, but the counters stay until no recorded Hello can pass."""
        self.registered = False
        self.registration = max(self.registration, counter)
        self.names = self.ports = self.proved = ()
        self.card = self.allow = None
        self.ttl = MIN_TTL


class Asker:
    """A sender as allow lists see it: its key and its names, as digests, computed once for a request."""

    def __init__(self, key: bytes, names: tuple[str, ...]) -> None:
        self.key = key
        self.names = names
        self._key_digest = key_digest(key)
        self._name_digests = [allowed_digest(name) for name in names]

    def is_admitted(self, owner: bytes, allow: bytes | None) -> bool:
        """Whether `owner`'s list lets it in. One's own key always is."""
        return (
            allow is None
            or owner == self.key
            or allows(allow, self._key_digest)
            or any(allows(allow, digest) for digest in self._name_digests)
        )

    def name_for(self, allow: bytes | None) -> str | None:
        """The name to show: one that the list has, so that the listener can check it too."""
        if allow is not None:
            for name, digest in zip(self.names, self._name_digests, strict=True):
                if allows(allow, digest):
                    return name
        return self.names[0] if self.names else None


class Registry:
    """The connected instances, bounded and expiring; and the names."""

    def __init__(self, names: NameStore, *, max_nodes: int) -> None:
        self.names = names
        self._max_nodes = max_nodes
        self._by_session: dict[bytes, NodeRecord] = {}
        # Newest last.
        self._by_key: dict[bytes, tuple[NodeRecord, ...]] = {}
        # Sessions to look at in a given second. Not moved at each frame: looked at, and put off.
        self._due: dict[int, list[bytes]] = {}
        self._next_sweep = 0

    def __len__(self) -> int:
        return len(self._by_session)

    def keys(self) -> list[bytes]:
        """Those of which any instance is here."""
        return list(self._by_key)

    def knows(self, key: bytes) -> bool:
        """Whether any instance of `key` is here."""
        return key in self._by_key

    def by_session(self, session: bytes, now: float) -> NodeRecord | None:
        """The record of a session that is not over."""
        node = self._by_session.get(session)
        return node if node is not None and node.expires > now else None

    def instances(self, key: bytes, now: float) -> tuple[NodeRecord, ...]:
        """The living records of a key, newest last."""
        return tuple(node for node in self._by_key.get(key, ()) if node.expires > now)

    def instance(self, key: bytes, instance: bytes, now: float) -> NodeRecord | None:
        """One of them."""
        for node in self._by_key.get(key, ()):
            if node.instance == instance and node.expires > now:
                return node
        return None

    def add(
        self, key: bytes, instance: bytes, session: bytes, source: Source, now: float
    ) -> NodeRecord | None:
        """A new record; None where the broker has as many as it may have."""
        if len(self._by_session) >= self._max_nodes:
            return None
        siblings = self._by_key.get(key, ())
        if len(siblings) >= MAX_INSTANCES:
            # A program that is started again and again must not lock itself out.
            self._remove(min(siblings, key=lambda node: (node.registered, node.expires)))
        node = NodeRecord(key, instance, session, source, now)
        self._by_session[session] = node
        self._by_key[key] = (*self._by_key.get(key, ()), node)
        self._due.setdefault(int(node.expires) + 1, []).append(session)
        return node

    def touch(self, node: NodeRecord, now: float) -> None:
        """A frame came from it."""
        node.expires = now + node.ttl

    def route(self, key: bytes, port: int, asker: Asker, now: float) -> NodeRecord | None:
        """The instance to introduce `asker` to: the newest with that port, else the newest.

        None alike where nobody is registered and where nobody lets the asker in.
        """
        open_ones = [
            node
            for node in self.instances(key, now)
            if node.registered and asker.is_admitted(node.key, node.allow)
        ]
        for node in reversed(open_ones):
            if port in node.ports:
                return node
        return open_ones[-1] if open_ones else None

    def visible_name(self, name: str, asker: Asker) -> NameRecord | None:
        """Who has `name`, as far as `asker` may know."""
        record = self.names.get(name)
        if record is None or not asker.is_admitted(record.key, record.allow):
            return None
        return record

    def expire(self, now: float) -> None:
        """Forget who has been silent for too long."""
        if now < self._next_sweep:
            return
        self._next_sweep = int(now) + 1
        for second in sorted(second for second in self._due if second <= now):
            for session in self._due.pop(second):
                node = self._by_session.get(session)
                if node is None:
                    continue
                if node.expires > now:
                    self._due.setdefault(int(node.expires) + 1, []).append(session)
                else:
                    self._remove(node)

    def _remove(self, node: NodeRecord) -> None:
        del self._by_session[node.session]
        rest = tuple(other for other in self._by_key[node.key] if other is not node)
        if rest:
            self._by_key[node.key] = rest
        else:
            del self._by_key[node.key]
