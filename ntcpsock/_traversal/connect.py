"""connect(): name -> node key -> introduction -> race -> nominated carrier -> session.

The dialer's side. It reads like that sentence; each step is a stage of the report.
"""

from __future__ import annotations

import trio

from ntcpsock._address import encode_node_id, full_name
from ntcpsock._datagram_way import OpenRoad
from ntcpsock._errors import BadMessage, IdentityMismatch, TraversalFailed
from ntcpsock._report import PeerInfo, Report
from ntcpsock._session.binding import send_bind
from ntcpsock._session.datagram_road import BareRoad
from ntcpsock._session.plain import PlainCarrier, nominate
from ntcpsock._session.stream import NTCPStream
from ntcpsock._session.tls import Carrier
from ntcpsock._traversal.course import DialContext
from ntcpsock._traversal.datagram_plan import preference
from ntcpsock._traversal.dial import Dial
from ntcpsock._traversal.direct import DirectRace
from ntcpsock._traversal.explain import Explanation, explain, note_sides
from ntcpsock._traversal.gather import WarmPort, open_agreed
from ntcpsock._traversal.opened import make_road, make_stream
from ntcpsock._traversal.patience import group_of
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
    connection = await dial_for(node, dial, report, given)
    carrier = connection.carrier
    assert not isinstance(carrier, BareRoad), "made for datagrams alone"
    node_id = encode_node_id(dial.key)
    peer = PeerInfo(dial.label if dial.label != node_id else None, node_id, port)
    stream = make_stream(carrier, connection.technique, peer, report, window=node.window)
    node.moving.dialled(stream, dial)
    return stream


async def connect_road(
    node: DialContext, label: str, port: int, report: Report, source_port: int
) -> OpenRoad:
    """Dial for a road that carries datagrams to the node called `label`, where `port` takes them. As `connect`."""
    with report.stage("resolve", trio.current_time):
        key = await node.introductions.resolve(label)
    dial = Dial(key, label, port, source_port, node.encryption, kind="datagram")
    connection = await dial_for(node, dial, report)
    return make_road(connection.carrier, connection.technique, dial.key, label, report)


async def dial_for(
    node: DialContext, dial: Dial, report: Report, given: GivenSocket | None = None
) -> Connection:
    """All that streams, their moves and datagrams have in common: an authenticated carrier. As `connect`."""
    dial.earlier = node.surroundings.earlier_failures(dial.key)
    dial.prefer = preference(node.prefer, node.techniques, dial.kind)
    with report.stage("gather", trio.current_time):
        warm = await node.take_port(node.bursts.ports_again(dial.key, trio.current_time()))
    datagram = 0 if warm.datagram is None else warm.datagram.port.number
    node.bursts.dials(dial.key, warm.port, datagram)
    mapped_since = warm.mappings_since
    try:
        with node.introductions.awaiting_answer(dial), node.introductions.withdrawn_on_failure(dial):
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
                connection = await _punch(node, dial, card, warm, report, given)
            with report.stage("bind", trio.current_time):
                await _bind(connection, dial)
    finally:
        warm.close()
    dial.since = mapped_since.get(connection.carrier.local.port, report.started)
    report.seconds = trio.current_time() - report.started
    if isinstance(connection.carrier, Carrier | PlainCarrier):
        keep_mapping_alive(connection.carrier.socket)
    return connection


async def dial_as_agreed(node: DialContext, dial: Dial, number: int, report: Report) -> Connection:
    """As `dial_for`, from the port `number`, for a standing dial that the listener has answered before: it comes
    towards us by itself when it has no other way. Raises OSError."""
    dial.prefer = preference(node.prefer, node.techniques, dial.kind)
    card = await _card_from_answer(dial)
    warm = open_agreed(number)
    try:
        with report.stage("punch", trio.current_time):
            race = DirectRace(node, dial, card, warm, report)
            connection = await race.run()
        if connection is None:
            raise TraversalFailed(f"no direct path to {full_name(dial.label)} as agreed before")
        with report.stage("bind", trio.current_time):
            await _bind(connection, dial)
    finally:
        warm.close()
    dial.since = report.started
    if isinstance(connection.carrier, Carrier | PlainCarrier):
        keep_mapping_alive(connection.carrier.socket)
    return connection


async def _introduce(node: DialContext, dial: Dial, payload: bytes) -> Card | None:
    """The listener's card, or None where it keeps it to itself and answers instead."""
    introduction = await node.introductions.introduce(dial, payload)
    if introduction.key != dial.key:
        raise IdentityMismatch(
            f"the broker introduced {encode_node_id(introduction.key)} for {full_name(dial.label)}, "
            f"whose key is {encode_node_id(dial.key)}"
        )
    dial.observed_host = introduction.observed_host
    dial.also_observed = introduction.also_observed
    dial.instance = introduction.instance
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
    return Card(
        answer.fingerprint,
        answer.candidates,
        (dial.port,),
        answer.profile,
        answer.broker_rtt,
        raw=answer.raw,
        turn=answer.turn,
        relayed=answer.relayed,
        udp_profile=answer.udp_profile,
    )


async def _punch(
    node: DialContext, dial: Dial, card: Card, warm: WarmPort, report: Report, given: GivenSocket | None
) -> Connection:
    note_sides(report, (warm.profile, warm.offered), (card.profile, card.candidates))
    race = DirectRace(node, dial, card, warm, report, given)
    has_prospect = card.relayed or bool(set(node.techniques) - {"relay"})
    try:
        connection = await race.run() if has_prospect else None
    except OSError:
        raise  # the listener's own word
    except BaseException:  # cancelled, most often because its time is up
        node.surroundings.dial_ended(dial.key, None, ())
        raise
    is_direct = connection is not None and group_of(connection.technique) != "relay"
    direct = connection.technique if connection is not None and is_direct else None
    node.surroundings.dial_ended(dial.key, direct, race.failed)
    if connection is None:
        why = explain(report)
        if race.errors and all(isinstance(error, PermissionError) for error in race.errors):
            why = Explanation("Nothing that is allowed could be tried.", f"{race.errors[0].strerror}.")
        elif not set(node.techniques) - {"lan"}:
            why = Explanation(
                "Both sides are in different networks, and only lan is allowed.", "Allow other techniques."
            )
        elif not set(node.techniques) - {"relay", "turn"}:
            why = Explanation("Only the relay is allowed.", "")
        why = Explanation(why.cause, f"{why.advice} {why_no_relay(node, card)}".lstrip())
        report.cause, report.advice = why.cause, why.advice
        name = full_name(dial.label)
        attempts = race.errors or [OSError("no technique that is allowed fits the candidates of both sides")]
        raise TraversalFailed(
            f"no direct path to {name}: {len(race.errors)} attempts failed. {why}"
        ) from ExceptionGroup(f"attempts to reach {name}", attempts)
    return connection


async def _bind(connection: Connection, dial: Dial) -> None:
    carrier = connection.carrier
    try:
        if isinstance(carrier, PlainCarrier):
            await nominate(carrier)
        elif not isinstance(carrier, BareRoad):  # that was chosen and proven at once
            await send_bind(carrier, dial.dial_id, dial.token)
    except (OSError, trio.BrokenResourceError) as error:
        carrier.close(abort=True)
        raise TraversalFailed(
            f"the path to {full_name(dial.label)} broke at once: {error.__cause__ or error}"
        ) from error
    except BaseException:
        connection.carrier.close(abort=True)
        raise
