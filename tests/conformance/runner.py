"""The process that runs one of CPython's test modules, and writes what became of each test.

    python runner.py MODE TASK.json OUTCOMES.jsonl

MODE: baseline, plain or named. The task names the test modules, the resources, and the ids to run or to leave
out. Each test writes two lines, when it begins and when it has ended: what made the process end is known.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
import unittest
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

MODE_VARIABLE = "NTCP_CONFORMANCE_MODE"
METHODS_VARIABLE = "NTCP_CONFORMANCE_START_METHODS"


class Recorder(unittest.TestResult):
    """Writes outcomes: ok, fail, error, skip, expected failure, unexpected success."""

    def __init__(self, output: TextIO, limit: float) -> None:
        super().__init__()
        self._output = output
        self._limit = limit
        self._seen: dict[str, tuple[str, str]] = {}

    def _write(self, **record: Any) -> None:
        print(json.dumps(record), file=self._output, flush=True)

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        # Whole traceback and a dead process, rather than a test run that hangs.
        faulthandler.dump_traceback_later(self._limit, exit=True)
        self._write(begin=test.id())

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        faulthandler.cancel_dump_traceback_later()
        self._end(test.id())

    def _end(self, test_id: str) -> None:
        outcome, detail = self._seen.pop(test_id, ("ok", ""))
        self._write(id=test_id, outcome=outcome, detail=detail)

    def _note(self, test: Any, outcome: str, detail: str) -> None:
        """The first thing that is not a success; a sub-test speaks for its test."""
        test_id = getattr(test, "test_case", test).id()
        self._seen.setdefault(test_id, (outcome, detail))
        if not isinstance(test, unittest.TestCase):  # setUpClass, setUpModule: no test begins or ends
            self._end(test_id)

    def addError(self, test: Any, err: Any) -> None:
        self._note(test, "error", self._exc_info_to_string(err, test))  # type: ignore[attr-defined]

    def addFailure(self, test: Any, err: Any) -> None:
        self._note(test, "fail", self._exc_info_to_string(err, test))  # type: ignore[attr-defined]

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            outcome = "fail" if issubclass(err[0], test.failureException) else "error"
            self._note(test, outcome, self._exc_info_to_string(err, subtest))  # type: ignore[attr-defined]

    def addSkip(self, test: Any, reason: str) -> None:
        self._note(test, "skip", reason)

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        self._note(test, "expected failure", "")

    def addUnexpectedSuccess(self, test: Any) -> None:
        self._note(test, "unexpected success", "")


def tests_of(suite: Any) -> Iterator[Any]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from tests_of(test)
        else:
            yield test


def is_wanted(test_id: str, task: dict[str, Any]) -> bool:
    if test_id in task["done"] or (task["only"] is not None and test_id not in task["only"]):
        return False
    if any(fnmatchcase(test_id, pattern) for pattern in task["excluded"]):
        return False
    return any(fnmatchcase(test_id, pattern) for pattern in task["patterns"])


def prepare() -> None:
    """Put this process, a test runner or a child that a test spawned, into its mode."""
    mode = os.environ.get(MODE_VARIABLE, "baseline")
    if mode != "baseline":
        import ntcpsock

        ntcpsock.install()
    if mode == "named":
        # The script's own directory is on the path only where it is the main module.
        sys.path.insert(0, str(Path(__file__).parent))
        importlib.import_module("localhost_name").install()
        del sys.path[0]
    for method in os.environ.get(METHODS_VARIABLE, "").split():
        make_multiprocessing_tests(method)


def warm_up() -> None:
    """One connection, to start the engine, and to be sure that the tests' addresses are names."""
    import ntcpsock

    with ntcpsock.create_server(("localhost", 0)) as server:
        with ntcpsock.create_connection(server.getsockname()) as client, server.accept()[0] as accepted:
            assert isinstance(client, ntcpsock.NTCPSocket)
            assert isinstance(accepted, ntcpsock.NTCPSocket)
            assert client.peer is not None
            assert accepted.peer is not None


def make_multiprocessing_tests(method: str) -> None:
    """CPython has a three-line module for each start method, which some builds do not install."""
    module = ModuleType(f"test.test_multiprocessing_{method}")
    tests = importlib.import_module("test._test_multiprocessing")
    tests.install_tests_in_module_dict(vars(module), method)
    sys.modules[module.__name__] = module
    setattr(importlib.import_module("test"), f"test_multiprocessing_{method}", module)


def main(mode: str, task_file: str, output_file: str) -> None:
    task = json.loads(Path(task_file).read_text())
    # The tests' own children are in this mode too; nothing of ours is to be found on their path.
    os.environ[MODE_VARIABLE] = mode
    os.environ[METHODS_VARIABLE] = " ".join(
        module.rpartition("_")[2] for module in task["modules"] if "_multiprocessing_" in module
    )
    sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).parent)]
    sys.argv = [task["modules"][0]]
    prepare()
    if mode == "named":
        # Tests compare the threads before and after; the engine's are there from now on.
        warm_up()
    # Type checkers do not know the system's tests.
    support = importlib.import_module("test.support")
    threading_helper = importlib.import_module("test.support.threading_helper")
    vars(support).update(use_resources=task["resources"], verbose=0)
    suite = unittest.TestSuite(
        test
        for module in task["modules"]
        for test in tests_of(unittest.defaultTestLoader.loadTestsFromName(module))
        if is_wanted(test.id(), task)
    )
    with open(output_file, "a") as output:
        key = threading_helper.threading_setup()
        suite.run(Recorder(output, task["limit"]))
        faulthandler.dump_traceback_later(task["limit"], exit=True)
        threading_helper.threading_cleanup(*key)
        print(json.dumps({"complete": True}), file=output, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
elif __name__ == "__mp_main__":
    prepare()  # a child that multiprocessing has spawned
