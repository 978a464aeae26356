"""SIGHUP: settings and files are read again, all or none; what is wrong is said, and what stood before stands."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ntcpsock._servers import logs
from ntcpsock._servers.bans import BanList, normal_subject
from ntcpsock._servers.certificate import CertificateFiles
from ntcpsock._servers.gate import Gate
from ntcpsock._servers.operator_options import RELOADABLE
from ntcpsock._servers.options import Source
from ntcpsock._servers.policy import read_policy
from ntcpsock._servers.quotas import read_quotas

_logger = logging.getLogger("ntcpsock.server")

Settings = Mapping[str, Any]
#: Looks at new settings, raises ConfigurationError for what is wrong, and returns what puts them in force.
Prepare = Callable[[Settings], Callable[[], None]]


class Reloader:
    """One server's. parts: what there is to be told."""

    def __init__(self, source: Source, parts: Sequence[Prepare]) -> None:
        self._source = source
        self._parts = tuple(parts)
        self._settings: Settings = source.read()

    def reload(self) -> None:
        """Raises ConfigurationError, and nothing has changed then."""
        fresh = self._source.read()
        for commit in [prepare(fresh) for prepare in self._parts]:
            commit()
        old, self._settings = self._settings, fresh
        late = sorted(name for name in fresh if fresh[name] != old.get(name) and name not in RELOADABLE)
        if late:
            _logger.warning("changed in the settings, and needs a restart: %s", ", ".join(late))


def reload_gate(gate: Gate) -> Prepare:
    """Policy, quotas and the bans of the settings."""

    def prepare(settings: Settings) -> Callable[[], None]:
        policy, quotas = read_policy(settings), read_quotas(settings)
        bans = _bans_of(settings)

        def commit() -> None:
            gate.configure(policy, quotas)
            gate.bans.set_from_settings(bans)

        return commit

    return prepare


def reload_bans(bans: BanList) -> Prepare:
    """For a server that has no gate."""

    def prepare(settings: Settings) -> Callable[[], None]:
        fresh = _bans_of(settings)
        return lambda: bans.set_from_settings(fresh)

    return prepare


def _bans_of(settings: Settings) -> list[str]:
    return [normal_subject(text) for text in settings.get("ban") or ()]


def reload_logs(settings: Settings) -> Callable[[], None]:
    """Form and level of the log."""
    form, level = settings.get("log") or "text", settings.get("log_level")
    logs.check(form, level)
    return lambda: logs.set_up(form, level)


def reload_certificate(files: CertificateFiles | None) -> Prepare:
    """The same files, with what is in them now."""

    def prepare(settings: Settings) -> Callable[[], None]:
        return (lambda: None) if files is None else files.prepare()

    return prepare
