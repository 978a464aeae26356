"""A relay registers at brokers: it says every few seconds where it is and how full, and when it takes no more.

To a broker a relay is a node like others, so it has a node's session, which finds its way again after restarts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

import trio

from ntcpsock._address import (
    DEFAULT_BROKER_PORT,
    DEFAULT_TLS_PORT,
    BrokerAddress,
    parse_broker,
    parse_host_port,
)
from ntcpsock._errors import ConfigurationError
from ntcpsock._identity import Identity
from ntcpsock._servers.relay import RelayDesk
from ntcpsock._servers.relay_book import OFFER_INTERVAL
from ntcpsock._state import Pins
from ntcpsock._traversal.broker.driver import BrokerSession, open_broker_session
from ntcpsock._traversal.broker.fields import RelayPlace, check_relay

_logger = logging.getLogger("ntcpsock.relay")

# Seconds to wait for a broker's first answer, and after a failure.
_PATIENCE = 10.0
_PAUSE = 5.0


def brokers_of(texts: Sequence[str] | None) -> list[BrokerAddress]:
    """`--broker`. Raises ConfigurationError, also for one without a key: what is said there lets in and out."""
    addresses = [parse_broker(text) for text in texts or ()]
    for address in addresses:
        if address.key is None:
            raise ConfigurationError(f"broker {address}: give its key as well: ntcp://HOST:PORT?key=KEY")
    return addresses


def place_of(public: str | None, port: int, *, tls: bool) -> RelayPlace:
    """`--public`, or our port at whatever address the broker sees. Raises ConfigurationError."""
    if public is None:
        if tls:
            raise ConfigurationError("public: a relay with a certificate needs --public wss://HOST:PORT")
        return RelayPlace("0.0.0.0", port)
    bare = public.removeprefix("wss://")
    is_tls = bare != public
    host, where = parse_host_port(bare, DEFAULT_TLS_PORT if is_tls else DEFAULT_BROKER_PORT)
    place = RelayPlace(host, where, is_tls)
    try:
        check_relay(place)
    except ValueError as error:
        raise ConfigurationError(f"public: {public!r}: {error}; a name is for wss:// alone") from error
    return place


async def offer_at_brokers(
    brokers: Sequence[BrokerAddress],
    identity: Identity,
    secret: bytes | None,
    place: RelayPlace,
    desk: RelayDesk,
) -> NoReturn:
    """Until cancelled. identity: the relay's own; secret: the brokers' relay.key, None where they know `identity`."""
    async with trio.open_nursery() as nursery:
        for broker in brokers:
            nursery.start_soon(partial(_offer, broker, identity, secret, place, desk))
    raise AssertionError("the tasks of a server end only by cancellation")


async def _offer(
    broker: BrokerAddress, identity: Identity, secret: bytes | None, place: RelayPlace, desk: RelayDesk
) -> NoReturn:
    said = ""
    while True:
        try:
            async with open_broker_session(
                broker, identity, pins=Pins(None), keep_alive_interval=60.0, timeout=_PATIENCE
            ) as session:
                while True:
                    await _say(session, secret, place, desk)
                    if said:
                        _logger.warning("registered at %s again", broker)
                        said = ""
                    with trio.move_on_after(OFFER_INTERVAL):
                        await desk.draining.wait()
                        await _leave(session)
        except OSError as error:
            if str(error) != said:
                said = str(error)
                _logger.warning("not registered at %s: %s", broker, error)
        await trio.sleep(_PAUSE)


async def _say(session: BrokerSession, secret: bytes | None, place: RelayPlace, desk: RelayDesk) -> None:
    load = desk.load
    if load is None:
        await _leave(session)
    given = await session.offer_relay(place._replace(load=load or 0), secret)
    if given:
        desk.secrets.add(given)


async def _leave(session: BrokerSession) -> NoReturn:
    """Nobody is sent here any more; what is here may end in its own time."""
    await session.withdraw_relay()
    await trio.sleep_forever()
    raise AssertionError("unreachable")
