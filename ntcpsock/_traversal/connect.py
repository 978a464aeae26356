"""connect(): name -> node key -> introduction -> race -> nominated carrier -> session.

The dialer's side. It reads like that sentence; each step is a stage of the report.
"""

from __future__ import annotations

import trio

from ntcpsock._address import encode_node_id, full_name
from ntcpsock._errors import BadMessage, IdentityMismatch, TraversalFailed
from ntcpsock._report import PeerInfo, Report
from ntcpsock._session.plain import PlainCarrier, nominate
from ntcpsock._session.stream import NTCPStream, send_bind
from ntcpsock._traversal.accept import make_stream
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.direct import DialContext, DirectRace
from ntcpsock._traversal.gather import WarmPort
from ntcpsock._traversal.punch.driver import keep_mapping_alive
from ntcpsock._traversal.punch.given import GivenSocket
from ntcpsock._traversal.punch.message import Card, decode_card_untrusted
from ntcpsock._traversal.relayed import why_no_relay
from ntcpsock._traversal.strategies.base import Connection


async def connect(
    node: DialContext,
    label: str,
    port: int,
    report: Report,
    source_port: int = 0,
    given: GivenSocket | None = None,
) -> NTCPStream:
    """Dial `port` of the node called `label` (a name without suffix, or a node id).

    source_port: what the listener is told to be ours; 0: nothing. given: without encryption, the application's own
    socket, which shall become the connection if it can; it is withdrawn where it does not.

    Raises the errors of `ntcpsock._errors`. It has no deadline of its own beyond the attempts' budgets.
    Cancelling closes all that was opened.
    """
    with report.stage("resolve", trio.current_time):
        key = await node.introductions.resolve(label)
    dial = Dial(key, label, port, source_port, node.encryption)
    with report.stage("gather", trio.current_time):
        warm = await node.take_port()
    try:
        with node.introductions.awaiting_answer(dial):
            payload = dial.offer(1, warm, node.broker_rtt)
            with report.stage("broker", trio.current_time):
                card = await _introduce(node, dial, payload)
            if card is not None:
                dial.check_encryption(card.encryption)
            node.introductions.insist(dial, payload)
            if card is None:
                with report.stage("answer", trio.current_time):
                    card = await _card_from_answer(dial)
            with report.stage("punch", trio.current_time):
                if given is not None and not given.bind(warm.port):
                    given.withdraw()
                    given = None
                connection = await _punch(node, dial, card, warm, report, given)
            with report.stage("bind", trio.current_time):
                await _bind(connection, dial)
    finally:
        warm.close()
    report.seconds = trio.current_time() - report.started
    keep_mapping_alive(connection.carrier.socket)
    peer = PeerInfo(dial.label if dial.label != encode_node_id(key) else None, encode_node_id(key), port)
    return make_stream(connection.carrier, connection.technique, peer, report)


async def _introduce(node: DialContext, dial: Dial, payload: bytes) -> Card | None:
    """The listener's card, or None where it keeps it to itself and answers instead."""
    introduction = await node.introductions.introduce(dial, payload)
    if introduction.key != dial.key:
        raise IdentityMismatch(
            f"the broker introduced {encode_node_id(introduction.key)} for {full_name(dial.label)}, "
            f"whose key is {encode_node_id(dial.key)}"
        )
    dial.observed_host = introduction.observed_host
    if introduction.card is None:
        return None
    try:
        return decode_card_untrusted(introduction.card, dial.key)
    except BadMessage as error:
        raise IdentityMismatch(
            f"the card of {full_name(dial.label)} does not bear the signature of its key: "
            f"the broker or its data was tampered with ({error})"
        ) from error


async def _card_from_answer(dial: Dial) -> Card:
    """What the answer says, in the form of a card: it is sealed, so it proves its sender as a signature does."""
    answer = await dial.wait_accepted()
    return Card(answer.fingerprint, answer.candidates, (dial.port,), answer.profile, answer.broker_rtt)


async def _punch(
    node: DialContext, dial: Dial, card: Card, warm: WarmPort, report: Report, given: GivenSocket | None
) -> Connection:
    race = DirectRace(node, dial, card, warm, report, given)
    connection = await race.run()
    if connection is None:
        report.advice = f"{_advice(warm, card)} {why_no_relay(node)}"
        name = full_name(dial.label)
        attempts = race.errors or [OSError("no technique that is allowed fits the candidates of both sides")]
        raise TraversalFailed(
            f"no direct path to {name}: {len(race.errors)} attempts failed. {report.advice}"
        ) from ExceptionGroup(f"attempts to reach {name}", attempts)
    return connection


async def _bind(connection: Connection, dial: Dial) -> None:
    carrier = connection.carrier
    try:
        if isinstance(carrier, PlainCarrier):
            await nominate(carrier)
        else:
            await send_bind(carrier, dial.dial_id, dial.token)
    except (OSError, trio.BrokenResourceError) as error:
        carrier.close(abort=True)
        raise TraversalFailed(
            f"the path to {full_name(dial.label)} broke at once: {error.__cause__ or error}"
        ) from error
    except BaseException:
        connection.carrier.close(abort=True)
        raise


def _advice(warm: WarmPort, card: Card) -> str:
    """The one change that would help, as far as both profiles tell."""
    if (
        not any(candidate.type == "srflx" for candidate in warm.candidates)
        and warm.profile.translated is None
    ):
        return "No STUN server answered over TCP: check that this network lets TCP to the STUN port out."
    for side, profile in (("this side", warm.profile), ("the other side", card.profile)):
        if profile.mapping == "endpoint-dependent":
            return (
                f"The NAT of {side} gives every connection another port (symmetric): "
                "give either side a public address or a forwarded port."
            )
    return "Neither NAT let a connection through: give either side a public address or a forwarded port."
