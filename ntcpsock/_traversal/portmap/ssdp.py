"""SSDP, as far as it finds a UPnP gateway: the M-SEARCH request and its responses (UPnP Device Architecture 1.1,
section 1.3). What follows, the description and SOAP, is miniupnpc's."""

from __future__ import annotations

from urllib.parse import urlsplit

from ntcpsock._errors import BadMessage

MULTICAST_ADDRESS = "239.255.255.250"
PORT = 1900

#: What is asked for. A router of IGD version 2 answers for version 1 too.
SEARCH_TARGETS = (
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
)

# Seconds over which devices spread their answers: the least that the text allows.
_MX = 1

_LONGEST_RESPONSE = 4096
_LONGEST_LOCATION = 512


def encode_search(host: str, target: str) -> bytes:
    """An M-SEARCH for `target`. host: where it is sent, MULTICAST_ADDRESS or the gateway itself."""
    lines = (
        "M-SEARCH * HTTP/1.1",
        f"HOST: {host}:{PORT}",
        'MAN: "ssdp:discover"',
        f"MX: {_MX}",
        f"ST: {target}",
        "",
        "",
    )
    return "\r\n".join(lines).encode("ascii")


def decode_location_untrusted(data: bytes, gateway: str) -> str:
    """The URL of the description that a response from `gateway` names.

    It must be at the gateway itself: whoever else is named there would be sent our HTTP requests. Raises
    BadMessage for that and for what is no response of a gateway.
    """
    if len(data) > _LONGEST_RESPONSE:
        raise BadMessage(f"SSDP: {len(data)} octets")
    try:
        status, *lines = data.decode("ascii").split("\r\n")
    except UnicodeDecodeError as error:
        raise BadMessage("SSDP: not ASCII") from error
    if not status.startswith("HTTP/1.") or status.split(" ")[1:2] != ["200"]:
        raise BadMessage("SSDP: not a successful response")
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    if headers.get("st") not in SEARCH_TARGETS:
        raise BadMessage("SSDP: not a gateway")
    location = headers.get("location", "")
    try:
        url = urlsplit(location)
        host, port = url.hostname, url.port
    except ValueError as error:
        raise BadMessage(f"SSDP: location: {error}") from error
    if len(location) > _LONGEST_LOCATION or not location.isprintable() or " " in location:
        raise BadMessage("SSDP: this location is no URL")
    if url.scheme != "http" or host != gateway or port == 0 or url.username is not None:
        raise BadMessage("SSDP: the location is not at the gateway")
    return location
