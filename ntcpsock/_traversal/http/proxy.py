"""Which proxy leads out of this network, as the environment says it (HTTPS_PROXY, HTTP_PROXY, NO_PROXY)."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

_VARIABLES = ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY")
_DEFAULT_PORT = 80


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. credentials: `user:password` or None; they stay out of texts."""

    host: str
    port: int
    credentials: str | None = None

    def __str__(self) -> str:
        return f"the proxy {self.host}:{self.port}"


def find_proxy(host: str, environ: Mapping[str, str] | None = None) -> Proxy | None:
    """The proxy for TCP connections to `host`, None where they go out as they are.

    Loopback is never behind one. A proxy that is not spoken to over plain HTTP is none that we can use.
    """
    environ = os.environ if environ is None else environ
    if _is_loopback(host) or _is_excepted(host, environ):
        return None
    # REQUEST_METHOD: in a CGI program HTTP_PROXY is what the client's `Proxy:` header says.
    names = [name for name in _VARIABLES if name != "HTTP_PROXY" or "REQUEST_METHOD" not in environ]
    text = next((environ[name] for name in names if environ.get(name)), "")
    return parse_proxy(text) if text else None


def parse_proxy(text: str) -> Proxy | None:
    """`[http://][user:password@]host[:port][/]`; None for anything else."""
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if parts.scheme != "http" or not host:
        return None
    credentials = None
    if parts.username is not None:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Proxy(host, _DEFAULT_PORT if port is None else port, credentials)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def _is_excepted(host: str, environ: Mapping[str, str]) -> bool:
    """NO_PROXY: names (with all below them), addresses, networks, or `*`."""
    text = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    for entry in (part.strip().lower() for part in text.split(",")):
        if entry == "*" or _covers(entry, host.lower()):
            return True
    return False


def _covers(entry: str, host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        suffix = entry.lstrip(".")
        return bool(suffix) and (host == suffix or host.endswith("." + suffix))
    try:
        return address in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
