"""Run one schedule again, and show what happened."""

from __future__ import annotations

import sys

from session_simulation.schedule import Schedule


def main() -> None:
    schedule = Schedule(int(sys.argv[1]))
    schedule.world.trace = []
    try:
        print(schedule.run())
    finally:
        print("\n".join(schedule.world.trace))


main()
