"""Memory of one process with many idle connections by name, in KiB a connection: dialling and listening side."""

from __future__ import annotations

from benchmarks import idle_ends
from benchmarks.harness import Series, save, show
from ntcpsock.cli.stage import open_loopback_stage

CONNECTIONS = 1000
NAME = "memory.ntcp"


def measure(count: int = CONNECTIONS) -> list[Series]:
    """KiB a connection, of the dialling and of the listening process."""
    with open_loopback_stage() as stage:
        sizes = idle_ends.measure(stage, NAME, count)
    return [
        Series(f"{side} process", "KiB", (size,))
        for side, size in zip(("dialling", "listening"), sizes, strict=True)
    ]


def main() -> None:
    series = measure()
    show(f"Memory a connection, {CONNECTIONS} idle connections", series)
    print(save("memory", series))


if __name__ == "__main__":
    main()
