"""miniupnpd (UPnP-IGD, NAT-PMP and PCP) on a router of the Linux engine."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Collection
from pathlib import Path

from ntcpsock.testing.natlab.kinds import LAN, WAN
from ntcpsock.testing.natlab.namespace import LabUnavailable, tool
from ntcpsock.testing.natlab.place import MappedPort, Router

_TABLE = "mapper"
_CHAINS = ("miniupnpd", "prerouting_miniupnpd", "postrouting_miniupnpd")
_START_DEADLINE = 30.0  # seconds

# NAT-PMP and PCP share a port and a switch; the first byte of a request is its version.
_VERSIONS = {"nat-pmp": 0, "pcp": 2}

_RULE = re.compile(r"dport (\d+) dnat (?:ip )?to ([\d.]+):(\d+)")
_COUNTER = re.compile(r"packets (\d+)")


class Miniupnpd:
    """One daemon; external: the address that it tells, None for its own."""

    def __init__(self, router: Router, protocols: Collection[str], external: str | None) -> None:
        self._router = router
        self._keep = tempfile.TemporaryDirectory(prefix="natlab-mapper-")
        self._directory = Path(self._keep.name)
        self._signs = (1900,) * ("upnp" in protocols) + (5351,) * bool({"nat-pmp", "pcp"} & set(protocols))
        self._process: subprocess.Popen[bytes] | None = None
        (self._directory / "conf").write_text(_configuration(protocols, external))
        router.run([tool("nft"), "-f", "-"], input=_ruleset(protocols), text=True, check=True)

    def mappings(self) -> list[MappedPort]:
        """The mappings in force, as the router's own rules say."""
        listed = _nft(self._router, "list", "chain", "inet", _TABLE, "prerouting_miniupnpd")
        return [MappedPort(int(outer), host, int(port)) for outer, host, port in _RULE.findall(listed)]

    def asked(self) -> int:
        """How many packets have come from inside to the ports of the three protocols."""
        found = _COUNTER.search(_nft(self._router, "list", "counter", "inet", _TABLE, "asked"))
        assert found is not None
        return int(found[1])

    @property
    def log(self) -> str:
        """What the daemon has said."""
        return (self._directory / "log").read_text(errors="replace")

    def restart(self) -> None:
        """Forget every mapping and count the epoch anew, as a router does that was switched off and on."""
        self._stop()
        for chain in _CHAINS:
            _nft(self._router, "flush", "chain", "inet", _TABLE, chain)
        self.start()

    def start(self) -> None:
        """Raises LabUnavailable where the daemon does not come up."""
        argv = [
            tool("miniupnpd", "miniupnpd-nftables"),
            "-d",
            "-f",
            str(self._directory / "conf"),
            "-P",
            str(self._directory / "pid"),
        ]
        with (self._directory / "log").open("ab") as output:
            self._process = self._router.popen(argv, stdout=output, stderr=output)
        deadline = time.monotonic() + _START_DEADLINE
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise LabUnavailable(f"miniupnpd does not start: {self.log[-500:]}")
            time.sleep(0.02)

    def close(self) -> None:
        """End the daemon, and its mappings."""
        self._stop()
        _nft(self._router, "delete", "table", "inet", _TABLE)
        self._keep.cleanup()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def _listens(self) -> bool:
        listed = self._router.run(
            [tool("ss", "iproute2"), "-Hlun"], capture_output=True, text=True, check=True
        ).stdout
        return all(f":{port} " in listed for port in self._signs)


def _configuration(protocols: Collection[str], external: str | None) -> str:
    lines = [
        f"ext_ifname={WAN}",
        f"listening_ip={LAN}",
        f"enable_upnp={'yes' if 'upnp' in protocols else 'no'}",
        f"enable_natpmp={'yes' if {'nat-pmp', 'pcp'} & set(protocols) else 'no'}",
        "uuid=00000000-0000-0000-0000-000000000001",
        "secure_mode=yes",
        "ipv6_disable=yes",
        "allow 1024-65535 0.0.0.0/0 1024-65535",
        "deny 0-65535 0.0.0.0/0 0-65535",
        f"upnp_table_name={_TABLE}",
        f"upnp_nat_table_name={_TABLE}",
        *(
            f"upnp_{use}_chain={chain}"
            for use, chain in zip(("forward", "nat", "nat_postrouting"), _CHAINS, strict=True)
        ),
    ]
    if external is not None:
        lines.append(f"ext_ip={external}")
    return "\n".join([*lines, ""])


def _ruleset(protocols: Collection[str]) -> str:
    """The chains that miniupnpd fills. What it leads inside must pass the lab's own filter, too."""
    silent = [
        f"udp dport 5351 @th,64,8 {version} drop"
        for protocol, version in _VERSIONS.items()
        if protocol not in protocols
    ]
    lines = [
        f"table inet {_TABLE} {{",
        "  counter asked { }",
        *(f"  chain {chain} {{ }}" for chain in _CHAINS),
        "  chain forward { type filter hook forward priority 0; jump miniupnpd; }",
        "  chain prerouting { type nat hook prerouting priority -100; jump prerouting_miniupnpd; }",
        "  chain postrouting { type nat hook postrouting priority 90; jump postrouting_miniupnpd; }",
        "  chain input {",
        "    type filter hook input priority -10;",
        f'    iifname "{LAN}" udp dport {{ 1900, 5351 }} counter name asked',
        *(f"    {rule}" for rule in silent),
        "  }",
        "}",
        "insert rule ip lab forward ct status dnat accept",
        "",
    ]
    return "\n".join(lines)


def _nft(router: Router, *words: str) -> str:
    done = router.run([tool("nft"), *words], capture_output=True, text=True, check=True)
    return str(done.stdout)
