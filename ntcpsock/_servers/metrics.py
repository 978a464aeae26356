"""`/metrics`: what the servers of this process count, as Prometheus reads it (its text format 0.0.4).

The servers count for themselves, in their own records, and this reads them when somebody asks: no server knows of
metrics. prometheus_client makes the text, and says what the process itself costs (memory, CPU, descriptors).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import trio

from ntcpsock._servers.broker_core import BrokerCore
from ntcpsock._servers.cluster.machine import ClusterMachine, State
from ntcpsock._servers.outcomes import BOUNDS as OUTCOME_BOUNDS
from ntcpsock._servers.outcomes import Outcomes
from ntcpsock._servers.relay import RelayDesk
from ntcpsock._servers.round_trips import BOUNDS
from ntcpsock._servers.stun import StunCounters
from ntcpsock._servers.web import WebCounters

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True)
class Sources:
    """What there is in this process. unsent: frames of the broker that did not leave, by reason."""

    core: BrokerCore | None = None
    unsent: Mapping[str, int] | None = None
    web: WebCounters | None = None
    relay: RelayDesk | None = None
    stun: Sequence[StunCounters] = ()


def render(sources: Sources) -> tuple[str, str]:
    """The page and its content type."""
    # Only who asks pays for the import.
    from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
    from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

    registry = CollectorRegistry()
    registry.register(_collector(sources))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return generate_latest(registry).decode(), CONTENT_TYPE_PLAIN_0_0_4


def _collector(sources: Sources) -> Collector:
    from prometheus_client.registry import Collector

    class Counts(Collector):
        def collect(self) -> Iterable[Metric]:
            return _collect(sources)

    return Counts()


def _collect(sources: Sources) -> Iterator[Metric]:
    if sources.core is not None:
        yield from _broker(sources.core, sources.unsent or {})
    if sources.web is not None:
        yield from _web(sources.web)
    if sources.relay is not None:
        yield from _relay(sources.relay)
    if sources.stun:
        yield from _stun(sources.stun)


def _broker(core: BrokerCore, unsent: Mapping[str, int]) -> Iterator[Metric]:
    yield _gauge("ntcp_broker_nodes", "Instances of nodes that are connected.", len(core))
    yield _gauge("ntcp_broker_names", "Names that belong to a key.", core.name_count)
    yield _counter("ntcp_broker_sessions", "Sessions that were opened.", core.counters.sessions)
    yield _counter(
        "ntcp_broker_registrations", "Registrations that were accepted.", core.counters.registrations
    )
    yield _counter("ntcp_broker_lookups", "Names that were asked for.", core.counters.lookups)
    yield _counter("ntcp_broker_introductions", "Offers that were delivered.", core.counters.introductions)
    yield _counter("ntcp_broker_replies", "Answers that were delivered.", core.counters.replies)
    yield _by_reason("ntcp_broker_refused", "Requests with a refusal as answer.", core.counters.refused)
    yield _by_reason("ntcp_broker_dropped", "Frames without an answer.", core.dropped)
    yield _by_reason("ntcp_broker_unsent", "Frames that did not leave.", unsent)
    yield _counter("ntcp_broker_unwritten", "Registrations that found the disk full.", core.unwritten)
    if core.cluster is not None:
        yield from _cluster(core.cluster)
    yield _gauge("ntcp_broker_bans", "Keys, addresses and networks that are banned.", len(core.gate.bans))
    places = core.relays.told(trio.current_time())[1]
    yield _gauge("ntcp_broker_relays", "Relays that nodes are told.", len(places))
    trips = core.round_trips
    yield _histogram(
        "ntcp_broker_round_trip_seconds",
        "From a Challenge to the hello that answers it.",
        BOUNDS,
        trips.counts,
        trips.sum,
    )
    yield from _outcomes(core.outcomes)


def _outcomes(outcomes: Outcomes) -> Iterator[Metric]:
    yield _by_labels(
        "ntcp_outcomes",
        "Dials that have connected, as nodes tell it.",
        ("technique", "kind"),
        outcomes.connected,
    )
    yield _counter("ntcp_outcomes_failed", "Dials that nothing has connected.", outcomes.failed)
    yield _by_labels(
        "ntcp_outcomes_by_nat",
        "Dials by how the NATs of both sides map, and by what came of them.",
        ("dialer", "listener", "outcome"),
        {
            (*pair, word): count
            for pair, counts in outcomes.by_pair.items()
            for word, count in zip(("direct", "relay", "failed"), counts, strict=True)
        },
    )
    yield _histogram(
        "ntcp_connect_seconds",
        "From a dial's call to its connection.",
        OUTCOME_BOUNDS,
        outcomes.counts,
        outcomes.sum,
    )


def _cluster(cluster: ClusterMachine) -> Iterator[Metric]:
    is_ready = cluster.state is State.READY
    yield _gauge("ntcp_cluster_store_up", "1 while the store that brokers share is there.", is_ready)
    yield _gauge("ntcp_cluster_waiting", "Requests that wait for it, or for another broker.", cluster.waiting)
    yield _counter("ntcp_cluster_unwritten", "Names that our disk did not take.", cluster.names.unwritten)
    yield _counter("ntcp_cluster_lost", "Names whose owner the store knew better.", cluster.names.lost)
    yield _by_reason("ntcp_cluster_events", "What was done for and by other brokers.", cluster.counters)


def _web(counters: WebCounters) -> Iterator[Metric]:
    yield _gauge("ntcp_web_connections", "Connections to the TCP port that are open.", counters.open)
    yield _counter("ntcp_web_accepted", "Connections that were accepted.", counters.accepted)
    yield _counter("ntcp_web_tls", "Of these, those that began with TLS.", counters.tls)
    refused = {
        "over a limit": counters.refused,
        "displaced by newer ones": counters.displaced,
        "too late": counters.late,
        "broken": counters.broken,
    }
    yield _by_reason("ntcp_web_refused", "Connections that came to nothing.", refused)


def _relay(relay: RelayDesk) -> Iterator[Metric]:
    counters = relay.counters
    yield _gauge("ntcp_relay_pairs", "Pairs of connections that are joined.", relay.pairs)
    yield _gauge("ntcp_relay_connections", "Connections, joined or waiting.", counters.open)
    yield _counter("ntcp_relay_joined", "Pairs that were joined.", counters.joined)
    yield _counter("ntcp_relay_unmatched", "Seats whose other side never came.", counters.unmatched)
    yield _counter("ntcp_relay_resets", "Pairs that ended with a broken connection.", counters.resets)
    yield _counter("ntcp_relay_idle", "Pairs that were ended because they were silent.", counters.idle)
    yield _counter("ntcp_relay_bytes", "Bytes that were moved, both directions.", counters.bytes)
    yield _gauge("ntcp_relay_load", "How full it is, in percent.", 100 if relay.load is None else relay.load)
    yield _by_reason("ntcp_relay_refused", "Seats that were not given.", counters.refused)


def _stun(servers: Sequence[StunCounters]) -> Iterator[Metric]:
    for field in fields(StunCounters):
        total = sum(getattr(counters, field.name) for counters in servers)
        if field.name == "tcp_open":
            yield _gauge("ntcp_stun_tcp_connections", "Connections that are open.", total)
        else:
            yield _counter(
                f"ntcp_stun_{field.name}", _STUN_TEXTS.get(field.name, "Of the STUN server."), total
            )


_STUN_TEXTS = {
    "udp_requests": "Binding requests over UDP that were answered.",
    "udp_dropped": "Datagrams that were no valid Binding request.",
    "udp_unread": "Datagrams that the kernel dropped: no Binding request by their first octets, or no room.",
    "udp_excessive": "Requests of addresses that sent too many while more came than could be answered.",
    "udp_errors": "Of the answers over UDP, error responses.",
    "udp_unsent": "Answers that the kernel would not take.",
    "tcp_requests": "Binding requests over TCP.",
    "tcp_refused": "Connections over a limit.",
    "tcp_broken": "Connections that spoke no STUN, or broke.",
    "tcp_idle": "Connections that were silent for too long.",
    "connect_backs": "Clients that were connected to because they asked for it.",
}


def _gauge(name: str, text: str, value: float) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    return CounterMetricFamily(name, text, value=value)


def _histogram(
    name: str, text: str, bounds: Sequence[float], counts: Sequence[int], total_seconds: float
) -> Metric:
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(name, text)
    total = 0
    buckets = []
    for bound, count in zip((*map(str, bounds), "+Inf"), counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    family.add_metric([], buckets, total_seconds)
    return family


def _by_labels(name: str, text: str, labels: Sequence[str], counts: Mapping[Any, int]) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(name, text, labels=labels)
    for values, count in sorted(counts.items()):
        family.add_metric(values, count)
    return family


def _by_reason(name: str, text: str, counts: Mapping[Any, int]) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(name, text, labels=["reason"])
    for reason, count in sorted(counts.items()):
        family.add_metric([str(reason)], count)
    return family
