"""The pairs of `ntcp lab matrix`, each as an `ntcp lab pair` of its own: what breaks one breaks no other."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from ntcpsock._config import TECHNIQUES, UDP_TECHNIQUES
from ntcpsock.cli.matrix import Cell, PairResult, Settings, Try, try_from_event
from ntcpsock.cli.matrix_topologies import TOPOLOGIES
from ntcpsock.testing.natlab import gives_ports_sparingly, parse_kind

#: What a matrix is about, unless it is told otherwise.
OVER_TCP = tuple(name for name in TECHNIQUES if name not in (*UDP_TECHNIQUES, "relay"))

# Seconds for one pair: what its lab and its nodes need, and what a failing try takes.
_START_DEADLINE = 120.0
_TRY_DEADLINE = 30.0

# A pair whose lab broke (no memory, a busy machine) gets another one.
_LABS = 2

_GRACE = 15.0  # seconds after SIGINT, in which a lab is removed


class PairBroken(RuntimeError):
    """A pair could not be tried at all; the message is what its process said."""


class PairRunner:
    """Runs pairs, `jobs` at a time. `run` calls `done` in this thread, in the order of their ends."""

    def __init__(self, settings: Settings, jobs: int) -> None:
        self._settings = settings
        self._jobs = jobs
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopping = False

    def run(self, cells: Iterable[Cell], done: Callable[[PairResult], None]) -> None:
        """Raises PairBroken. Whatever ends it, no process and no lab stays."""
        waiting: queue.SimpleQueue[Cell] = queue.SimpleQueue()
        for cell in cells:
            waiting.put(cell)
        results: queue.SimpleQueue[PairResult | BaseException | None] = queue.SimpleQueue()
        threads = [
            threading.Thread(target=self._work, args=(waiting, results), daemon=True)
            for _ in range(self._jobs)
        ]
        for thread in threads:
            thread.start()
        try:
            working = len(threads)
            while working:
                result = results.get()
                if result is None:
                    working -= 1
                elif isinstance(result, BaseException):
                    raise result
                else:
                    done(result)
        finally:
            self._stop()
            for thread in threads:
                thread.join()

    def _work(
        self,
        waiting: queue.SimpleQueue[Cell],
        results: queue.SimpleQueue[PairResult | BaseException | None],
    ) -> None:
        try:
            while not self._stopping:
                try:
                    cell = waiting.get_nowait()
                except queue.Empty:
                    break
                results.put(self._try_cell(cell))
        except BaseException as error:
            results.put(error)
        else:
            results.put(None)

    def _try_cell(self, cell: Cell) -> PairResult:
        path_rtt = 4 * self._settings.delay_ms / 1000
        tries: list[Try] = []
        # Where a connect takes most ports of a small block, the next one would only meet what is left: each gets
        # routers of its own, as if minutes lay between.
        alone = gives_ports_sparingly(cell.nat_a) or gives_ports_sparingly(cell.nat_b)
        for maps in self._mapping_sides(cell):
            for count in [1] * self._settings.tries if alone else [self._settings.tries]:
                tries += self._try_in_one_lab(cell, count, path_rtt, maps)
        return PairResult(cell.nat_a, cell.nat_b, tuple(tries), self._settings.everything, cell.topology)

    def _mapping_sides(self, cell: Cell) -> Iterable[str | None]:
        """Each host whose router shall map ports, one after the other."""
        if not self._settings.port_mapping:
            return [None]
        return [side for side, nat in (("a", cell.nat_a), ("b", cell.nat_b)) if parse_kind(nat).translates]

    def _try_in_one_lab(self, cell: Cell, count: int, path_rtt: float, maps: str | None) -> list[Try]:
        for number in range(1, _LABS + 1):
            events, errors = self._pair_events(cell, count, maps)
            if len(events) == count or number == _LABS or self._stopping:
                break
        if not events:
            raise PairBroken(f"{cell}: {errors or 'no outcome'}")
        tries = [try_from_event(event, path_rtt, maps) for event in events]
        # A node that broke half-way has failed the rest.
        broken = Try(False, 0.0, message=f"the pair broke: {errors}", maps=maps)
        return tries + [broken] * (count - len(tries))

    def _pair_events(self, cell: Cell, count: int, maps: str | None) -> tuple[list[dict[str, Any]], str]:
        settings = self._settings
        network = ["--nat-a", cell.nat_a, "--nat-b", cell.nat_b]
        if cell.topology is not None:
            network = TOPOLOGIES[cell.topology].options_with(cell.nat_a)
        argv = [sys.executable, "-m", "ntcpsock", "lab", "pair", "--json", *network]
        argv += ["--tries", str(count), "--delay-ms", f"{settings.delay_ms:g}"]
        usual = TECHNIQUES if settings.everything else OVER_TCP
        argv += ["--technique", settings.technique or ",".join(usual)]
        if maps is not None:
            argv += ["--maps", maps]
        with self._lock:
            if self._stopping:
                return [], "stopped"
            # In a group of its own: Ctrl-C reaches us, and we tell it once.
            process = subprocess.Popen(
                argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
            )
            self._running.add(process)
        try:
            out, errors = process.communicate(timeout=_START_DEADLINE + count * _TRY_DEADLINE)
        except subprocess.TimeoutExpired:
            _interrupt(process)
            out, errors = process.communicate()
        finally:
            with self._lock:
                self._running.discard(process)
        return [json.loads(line) for line in out.splitlines()], errors.strip()[-2000:]

    def _stop(self) -> None:
        with self._lock:
            self._stopping = True
            running = list(self._running)
        for process in running:
            _interrupt(process)


def _interrupt(process: subprocess.Popen[str]) -> None:
    """End a pair as Ctrl-C does, or, where it was started deaf to that (behind `&`), at once; its lab goes with it
    in either case."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
