"""What a node's configuration says to its dials, its acceptor and its card."""

from __future__ import annotations

from collections.abc import Sequence

from ntcpsock._config import Config, Encryption, Prefer
from ntcpsock._raw.privileges import missing_for_raw
from ntcpsock._session.machine import WINDOW
from ntcpsock._traversal.checks.machine import CONSENT_INTERVAL
from ntcpsock._traversal.gather_udp import UDP_REFRESH_INTERVAL
from ntcpsock._traversal.plan import RAW_TECHNIQUES


class NodeSettings:
    """pace: by how much the node keeps its mappings alive less often; infinite for a lazy node."""

    def __init__(self, config: Config, pace: float) -> None:
        self.config = config
        self._pace = pace

    def set_pace(self, pace: float) -> None:
        """Keep mappings alive so much less often from now on."""
        self._pace = pace

    @property
    def techniques(self) -> Sequence[str]:
        return self.config.usable_techniques

    @property
    def datagram_techniques(self) -> Sequence[str]:
        return self.config.datagram_techniques

    @property
    def hidden(self) -> bool:
        """Whether peers are to see no address of ours."""
        return self.config.relay == "only"

    @property
    def prefer(self) -> Prefer:
        return self.config.prefer

    @property
    def encryption(self) -> Encryption:
        return self.config.encryption

    @property
    def linger(self) -> float:
        """Seconds for which a stream without a path waits for another one; 0: streams do not move."""
        return self.config.linger if self.config.encryption != "off" else 0.0

    @property
    def window(self) -> int:
        """Bytes a direction that a stream keeps so that it can move."""
        return WINDOW if self.linger else 0

    @property
    def connect_timeout(self) -> float:
        return self.config.connect_timeout

    @property
    def birthday_sockets(self) -> int:
        return self.config.birthday_sockets

    @property
    def birthday_rate(self) -> float:
        return self.config.birthday_rate

    @property
    def consent_interval(self) -> float:
        """Seconds between two checks of a path over UDP: as often as its NAT needs them, where that is known."""
        return min(CONSENT_INTERVAL, UDP_REFRESH_INTERVAL * self._pace)

    @property
    def missing_for_raw(self) -> str | None:
        """What this process lacks for raw packets; None for nothing."""
        return missing_for_raw()

    @property
    def offers_raw(self) -> bool:
        """Whether dialers may plan techniques with raw packets."""
        return any(technique in RAW_TECHNIQUES for technique in self.techniques) and not self.missing_for_raw
