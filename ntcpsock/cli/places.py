"""Places on this machine and around it, as the service commands take them: `PORT`, `HOST:PORT`, `[::1]:PORT`."""

from __future__ import annotations

import ipaddress

import typer

from ntcpsock._address import is_ntcp_name

LOOPBACK = "127.0.0.1"


def parse_place(text: str, *, hint: str, lowest: int = 1) -> tuple[str, int]:
    """(host, port); the host is 127.0.0.1 where only a port is given. `*` stands for all addresses.

    lowest: the lowest port that makes sense. What is malformed, or a `.ntcp` name, is a usage error (exit 2).
    """
    host, separator, port = text.rpartition(":")
    if not separator:
        host = LOOPBACK
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    well_formed = host and bracketed == (":" in host) and port.isascii() and port.isdecimal()
    if not well_formed or len(port) > 5 or not lowest <= int(port) <= 65535:
        raise typer.BadParameter(f"{text!r}: expected PORT, HOST:PORT or [IPV6]:PORT", param_hint=hint)
    if is_ntcp_name(host):
        raise typer.BadParameter(f"{text!r}: expected a place that needs no broker", param_hint=hint)
    return ("0.0.0.0" if host == "*" else host), int(port)


def is_loopback(host: str) -> bool:
    """Whether listening at `host`, a numeric address, lets nobody in but this machine's users."""
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def show_place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
