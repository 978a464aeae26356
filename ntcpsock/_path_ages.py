"""At which ages paths die on which network: `paths.json` in the state directory.

Some carriers' NATs drop a mapping so many seconds after it was made, however much it is used. That shows when several
paths die in silence at like ages, and none lives longer. Whoever knows the age can have another path up before.

A memory, not a truth: a file that cannot be read is as good as none, what has not been seen for a week is forgotten,
and one path that outlives the rest is enough to doubt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from ntcpsock._experience import hashed, replace_file

PathTransport = Literal["udp", "tcp"]

#: Deaths at like ages that make a lifetime: the oldest is at most so many times as old as the youngest. (A carrier
#: that was watched takes 48 to 75 s.)
DEATHS_NEEDED = 3
SPREAD = 1.6

#: Part of its expected lifetime after which a path should have a successor.
MOVE_AT = 0.75

# Of another share of deaths at another age it is chance.
_SHARE = 0.6
# A path that is so many times as old as the oldest that died says that there is no such lifetime.
_OUTLIVES = 1.1

# Younger ones die of something else; older ones need no care.
SHORTEST_AGE, LONGEST_AGE = 10.0, 86400.0

# Deaths at one moment have one reason, which is no age; and a change of the network explains those around it.
TOGETHER = 10.0

EXPIRY = 7 * 86400.0
MAX_NETWORKS = 32
MAX_DEATHS = 8
MAX_PEERS = 32
_MAX_FILE = 256 * 1024


class Death(msgspec.Struct, frozen=True):
    """age: seconds until the path was heard of for the last time; at: Unix time; peer: a hash of the node's key."""

    age: float
    at: float
    peer: str


class Survival(msgspec.Struct, frozen=True):
    """The greatest age that a path to a peer has come to."""

    age: float
    at: float


class Ages(msgspec.Struct):
    """Of one network and transport. survived: by peer."""

    deaths: list[Death] = []
    survived: dict[str, Survival] = {}


_Networks = dict[str, dict[str, Ages]]
_decoder = msgspec.json.Decoder(_Networks)


def lifetime(deaths: Sequence[Death], survivals: Iterable[Survival]) -> float | None:
    """The least age at which paths must be expected to die, in seconds; None where nothing speaks for one."""
    by_age = sorted(deaths, key=lambda death: death.age)
    groups = [
        [death for death in by_age[first:] if death.age <= by_age[first].age * SPREAD]
        for first in range(len(by_age))
    ]
    group = max(groups, key=len, default=[])
    if len(group) < DEATHS_NEEDED or len(group) < _SHARE * len(by_age):
        return None
    since = min(death.at for death in group)
    limit = group[-1].age * _OUTLIVES
    # What lived longer before all of them did so under another rule.
    if any(survival.age > limit and survival.at >= since for survival in survivals):
        return None
    return group[0].age


class PathAges:
    """One process's view of the file. `save` brings what was noted since into it. clock: Unix time."""

    def __init__(self, directory: Path | None, clock: Callable[[], float] = time.time) -> None:
        self._path = None if directory is None else directory / "paths.json"
        self._clock = clock
        self._networks = self._read()
        self._noted: list[tuple[str, PathTransport, str, float, float, bool]] = []
        # The last death, and until when none counts.
        self._last_death = self._ignored_until = float("-inf")

    def note_death(self, network: str, transport: PathTransport, peer_key: bytes, age: float) -> None:
        """A path that was in use has fallen silent, `age` seconds after its first packet."""
        now = self._clock()
        is_alone = not 0 <= now - self._last_death < TOGETHER
        self._last_death = now
        if is_alone and now >= self._ignored_until and SHORTEST_AGE <= age <= LONGEST_AGE:
            self._note((network, transport, hashed(peer_key), age, now, True))

    def note_survival(self, network: str, transport: PathTransport, peer_key: bytes, age: float) -> None:
        """A path has come to an age of `age` seconds and was alive: at its orderly end, or now and then."""
        if age > SHORTEST_AGE:
            self._note((network, transport, hashed(peer_key), age, self._clock(), False))

    def network_changed(self) -> None:
        """Paths that die now, or have just died, did so for a reason."""
        now = self._clock()
        self._ignored_until = now + TOGETHER
        self._noted = [note for note in self._noted if not (note[-1] and _is_recent(note[4], now))]
        for transports in self._networks.values():
            for ages in transports.values():
                ages.deaths = [death for death in ages.deaths if not _is_recent(death.at, now)]

    @property
    def knows_deaths(self) -> bool:
        """Whether there is anything to expect, anywhere."""
        return any(ages.deaths for transports in self._networks.values() for ages in transports.values())

    def expected_lifetime(self, network: str, transport: PathTransport, peer_key: bytes) -> float | None:
        """Seconds after which a path to that node will be dropped though it is used; None where it will not, as far
        as anybody knows. It may be our own router's doing, or theirs: what is true of one peer need not be of all."""
        ages = self._networks.get(network, {}).get(transport)
        if ages is None:
            return None
        now, peer = self._clock(), hashed(peer_key)
        deaths = [death for death in ages.deaths if _is_fresh(death.at, now)]
        survived = {name: entry for name, entry in ages.survived.items() if _is_fresh(entry.at, now)}
        of_all = lifetime(deaths, survived.values())
        if of_all is not None:
            return of_all
        of_peer = [death for death in deaths if death.peer == peer]
        return lifetime(of_peer, [survived[peer]] if peer in survived else [])

    def save(self) -> None:
        """Write what is new, if anything is; other processes' entries stay."""
        noted, self._noted = self._noted, []
        if not noted or self._path is None:
            return
        networks = self._read()
        for note in noted:
            _apply(networks, note)
        self._networks = self._pruned(networks)
        with suppress(OSError):
            replace_file(self._path, msgspec.json.format(msgspec.json.encode(self._networks), indent=1))

    def _note(self, note: tuple[str, PathTransport, str, float, float, bool]) -> None:
        if _apply(self._networks, note):
            self._noted.append(note)
            del self._noted[: -MAX_NETWORKS * MAX_PEERS]
            if len(self._networks) > 2 * MAX_NETWORKS:
                self._networks = self._pruned(self._networks)

    def _read(self) -> _Networks:
        if self._path is None:
            return {}
        try:
            with open(self._path, "rb") as file:
                return self._pruned(_decoder.decode(file.read(_MAX_FILE)))
        except (OSError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
            return {}

    def _pruned(self, networks: _Networks) -> _Networks:
        """Without what has expired; the networks that were heard of last."""
        now = self._clock()
        kept: dict[str, dict[str, Ages]] = {}
        for network, transports in networks.items():
            for transport in ("udp", "tcp"):
                ages = transports.get(transport, Ages())
                deaths = [death for death in ages.deaths if _is_fresh(death.at, now)][-MAX_DEATHS:]
                fresh = [(peer, entry) for peer, entry in ages.survived.items() if _is_fresh(entry.at, now)]
                if deaths or fresh:
                    kept.setdefault(network, {})[transport] = Ages(deaths, dict(fresh[-MAX_PEERS:]))
        by_age = sorted(kept, key=lambda network: max(map(_last, kept[network].values())))
        return {network: kept[network] for network in by_age[-MAX_NETWORKS:]}


def _apply(networks: _Networks, note: tuple[str, PathTransport, str, float, float, bool]) -> bool:
    """Enter a note. Whether that told anything new."""
    network, transport, peer, age, at, died = note
    ages = networks.setdefault(network, {}).setdefault(transport, Ages())
    if died:
        ages.deaths = [*ages.deaths, Death(age, at, peer)][-MAX_DEATHS:]
        return True
    before = ages.survived.get(peer)
    # Not each second of a long life is news, and for a day the greatest age counts.
    if before is not None and age < before.age * _OUTLIVES and at < before.at + EXPIRY / 8:
        return False
    ages.survived.pop(peer, None)
    ages.survived[peer] = Survival(age, at)
    while len(ages.survived) > MAX_PEERS:
        del ages.survived[next(iter(ages.survived))]
    return True


def _last(ages: Ages) -> float:
    return max([death.at for death in ages.deaths] + [entry.at for entry in ages.survived.values()])


def _is_fresh(at: float, now: float) -> bool:
    return now - EXPIRY < at < now + EXPIRY


def _is_recent(at: float, now: float) -> bool:
    return now - TOGETHER < at <= now
