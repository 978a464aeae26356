"""Who is banned: keys, addresses and networks, from the settings and by `ntcp admin ban`; and the file that keeps the
latter over a restart."""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ntcpsock._address import decode_node_id
from ntcpsock._errors import ConfigurationError
from ntcpsock._traversal.relay.message import node_tag

#: Of both kinds together; a change looks at all of them, 4 us each.
MAX_BANS: Final = 10_000
_REMEMBERED: Final = 16384

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Ban:
    """subject: a node id, an address or a network, in its normal form. until: Unix time; None: for ever. from_file: it
    stands in the settings, so only they can lift it."""

    subject: str
    until: float | None = None
    why: str = ""
    from_file: bool = False


def normal_subject(text: str) -> str:
    """The normal form of what can be banned. Raises ConfigurationError."""
    text = text.strip().lower().removesuffix(".ntcp")
    if decode_node_id(text) is not None:
        return text
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ConfigurationError(f"ban: {text!r} is no node id, address or network (192.0.2.0/24)") from None
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


class BanList:
    """The bans in force. Time is Unix time: bans outlive the process."""

    def __init__(self) -> None:
        self._bans: dict[str, Ban] = {}
        #: Counts changes.
        self.edition = 0
        self._keys: set[bytes] = set()
        self._tags: set[bytes] = set()
        # version -> prefix length -> networks as numbers; IPv4 and IPv6 have few lengths each.
        self._networks: dict[int, dict[int, set[int]]] = {4: {}, 6: {}}
        self._seen: dict[str, bool] = {}

    def __len__(self) -> int:
        return len(self._bans)

    def __iter__(self) -> Iterator[Ban]:
        return iter(sorted(self._bans.values(), key=lambda ban: ban.subject))

    def has_key(self, key: bytes) -> bool:
        """Whether a node is banned by its key."""
        return key in self._keys

    def has_tag(self, tag: bytes) -> bool:
        """The same for the tag that stands for a key in tickets to a relay."""
        return tag in self._tags

    @property
    def has_networks(self) -> bool:
        """Whether any address is banned."""
        return any(self._networks.values())

    def has_host(self, host: str) -> bool:
        """Whether a numeric address is banned, by itself or in a network."""
        known = self._seen.get(host)
        if known is None:
            known = self._look_up(host)
            if len(self._seen) >= _REMEMBERED:
                self._seen.clear()
            self._seen[host] = known
        return known

    def _look_up(self, host: str) -> bool:
        address = ipaddress.ip_address(host.partition("%")[0])
        number, bits = int(address), address.max_prefixlen
        return any(
            number >> (bits - length) in networks
            for length, networks in self._networks[address.version].items()
        )

    def add(self, ban: Ban) -> None:
        """A ban, or another word about one. Raises ConfigurationError where there are too many."""
        if len(self._bans) >= MAX_BANS and ban.subject not in self._bans:
            raise ConfigurationError(f"ban: at most {MAX_BANS}; lift some first, or ban their network")
        known = self._bans.get(ban.subject)
        if known is None or not known.from_file or ban.from_file:
            self._bans[ban.subject] = ban
        self._index()

    def lift(self, subject: str) -> Ban | None:
        """The ban that is no more; None where there was none. Raises ConfigurationError for one of the settings."""
        ban = self._bans.get(subject)
        if ban is not None and ban.from_file:
            raise ConfigurationError(
                f"{subject}: this ban stands in the settings: take it out of them, and send SIGHUP"
            )
        if ban is not None:
            del self._bans[subject]
            self._index()
        return ban

    def set_from_settings(self, subjects: Iterable[str]) -> None:
        """Those of the settings, in place of what they said before. Raises ConfigurationError, and changes nothing."""
        fresh = {subject: Ban(subject, from_file=True) for subject in map(normal_subject, subjects)}
        kept = {subject: ban for subject, ban in self._bans.items() if not ban.from_file}
        if len(kept) + len(fresh) > MAX_BANS:
            raise ConfigurationError(f"ban: at most {MAX_BANS}")
        self._bans = kept | fresh
        self._index()

    def expire(self, now: float) -> bool:
        """Lift those whose time is over; whether there were any. now: Unix time."""
        over = [subject for subject, ban in self._bans.items() if ban.until is not None and ban.until <= now]
        for subject in over:
            del self._bans[subject]
        if over:
            self._index()
        return bool(over)

    def _index(self) -> None:
        self.edition += 1
        self._seen.clear()
        self._keys = set()
        self._networks = {4: {}, 6: {}}
        for subject in self._bans:
            key = decode_node_id(subject)
            if key is not None:
                self._keys.add(key)
                continue
            network = ipaddress.ip_network(subject)
            number = int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
            self._networks[network.version].setdefault(network.prefixlen, set()).add(number)
        self._tags = {node_tag(key) for key in self._keys}


class BanFile:
    """`bans.json` in the state directory: what was banned at run time."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def load(self, bans: BanList, now: float) -> None:
        """Add what it says. Raises ConfigurationError where it cannot be read."""
        if self._path is None or not self._path.exists():
            return
        try:
            for entry in json.loads(self._path.read_text(encoding="utf-8")):
                ban = Ban(normal_subject(entry["subject"]), entry["until"], str(entry["why"]))
                if ban.until is None or ban.until > now:
                    bans.add(ban)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigurationError(f"{self._path}: {error}: mend it, or move it away") from error

    def save(self, bans: BanList) -> None:
        """Replace it in one step. Raises OSError; the bans are in force all the same."""
        if self._path is None:
            return
        entries = [
            {"subject": ban.subject, "until": ban.until, "why": ban.why} for ban in bans if not ban.from_file
        ]
        fresh = self._path.with_suffix(".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(entries, file, indent=1)
        os.replace(fresh, self._path)
