"""Memory of one process with many idle connections by name, in KiB a connection: dialling and listening side, over TCP
and over UDP."""

from __future__ import annotations

from benchmarks import idle_ends
from benchmarks.harness import Series, save, show
from ntcpsock.cli.stage import open_loopback_stage

CONNECTIONS = 1000
NAME = "memory.ntcp"
WAYS: dict[str, dict[str, str]] = {"TCP": {}, "UDP": {"NTCP_TECHNIQUES": "udp-punch"}}


def measure(count: int = CONNECTIONS) -> list[Series]:
    """KiB a connection, of the dialling and of the listening process."""
    series: list[Series] = []
    for way, settings in WAYS.items():
        with open_loopback_stage() as stage:
            sizes = idle_ends.measure(stage, NAME, count, **settings)
        series += (
            Series(f"{side} process, {way}", "KiB", (size,))
            for side, size in zip(("dialling", "listening"), sizes, strict=True)
        )
    return series


def main() -> None:
    series = measure()
    show(f"Memory a connection, {CONNECTIONS} idle connections", series)
    print(save("memory", series))


if __name__ == "__main__":
    main()
