"""Run one schedule again, and show what happened: SEED, and the name of a broken machine where one is meant."""

from __future__ import annotations

import sys

from ntcpsock._session.machine import Session
from ntcpsock._session.resumption import Resumable
from session_simulation.mutants import RESUMABLES, SESSIONS
from session_simulation.schedule import Schedule

seed, mutant = int(sys.argv[1]), sys.argv[2:3]
schedule = Schedule(
    seed,
    session=next((one for one in SESSIONS if [one.__name__] == mutant), Session),
    resumable=next((one for one in RESUMABLES if [one.__name__] == mutant), Resumable),
)
schedule.world.trace = []
try:
    print(schedule.run())
finally:
    print("\n".join(schedule.world.trace))
