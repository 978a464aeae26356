"""`python -m benchmarks [NAME...]`: all of them, or those named."""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib import import_module

NAMES = (
    "connect_time",
    "throughput",
    "pingpong",
    "encryption_off",
    "patched",
    "memory",
    "relay",
    "quic",
    "moving",
    "cluster",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    names = parser.parse_args().names
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"unknown: {', '.join(unknown)}")
    if len(names) == 1:
        import_module(f"benchmarks.{names[0]}").main()
        return
    # Each in a process of its own: a process has one engine, which stays with its first broker.
    for name in names or NAMES:
        subprocess.run([sys.executable, "-m", "benchmarks", name], check=True)


if __name__ == "__main__":
    main()
