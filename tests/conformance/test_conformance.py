"""CPython's own socket tests have the same outcome under ntcpsock: with plain addresses, and by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

from .catalogue import MODULES
from .compare import Known, compare, compare_module, environment_of, load_known
from .outcomes import Module, Outcome, run

needs_tests = pytest.mark.skipif(
    importlib.util.find_spec("test.test_socket") is None,
    reason="the system's tests are not installed (Debian: libpython3.11-testsuite)",
)
# The longest takes five minutes here.
patience = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def named_environment() -> Iterator[dict[str, str]]:
    with environment_of("named") as environment:
        yield environment


@pytest.fixture(scope="module")
def plain_environment() -> Iterator[dict[str, str]]:
    with environment_of("plain") as environment:
        yield environment


def cases(mode: str) -> list[object]:
    return [
        pytest.param(module, id=module.name, marks=() if mode in module.quick else pytest.mark.slow)
        for module in MODULES
    ]


@needs_tests
@patience
@pytest.mark.parametrize("module", cases("plain"))
def test_plain_addresses(module: Module, plain_environment: dict[str, str]) -> None:
    result = compare_module(module, "plain", plain_environment, load_known())
    assert result.run
    assert not result.describe(), result.describe()


@needs_tests
@patience
@pytest.mark.parametrize("module", cases("named"))
def test_by_name(module: Module, named_environment: dict[str, str]) -> None:
    result = compare_module(module, "named", named_environment, load_known())
    assert result.run
    assert not result.describe(), result.describe()


def test_every_known_difference_says_why_and_how_it_shows() -> None:
    for known in load_known():
        assert known.mode in ("plain", "named")
        assert known.tests
        assert known.reason
        assert known.noticed


KNOWN = Known(("m.A.test_listed*",), "named", "because", "by looking")
OK, FAIL, SKIP = Outcome("ok"), Outcome("fail", "text"), Outcome("skip")


def test_an_outcome_that_differs_is_a_difference() -> None:
    result = compare(
        "named", {"m.A.test_a": OK, "m.A.test_b": FAIL}, {"m.A.test_a": FAIL, "m.A.test_b": FAIL}, ()
    )
    assert (result.run, result.same) == (2, 1)
    assert list(result.unknown) == ["m.A.test_a"]
    assert "text" in result.describe()


def test_a_skipped_or_missing_test_is_a_difference() -> None:
    assert compare("plain", {"m.A.test_a": OK}, {"m.A.test_a": SKIP}, ()).unknown
    assert compare("plain", {"m.A.test_a": OK}, {}, ()).unknown


def test_a_listed_difference_is_known_in_its_mode_only() -> None:
    outcomes = {"m.A.test_listed_1": OK}, {"m.A.test_listed_1": FAIL}
    assert compare("named", *outcomes, [KNOWN]).known == ["m.A.test_listed_1"]
    assert not compare("named", *outcomes, [KNOWN]).describe()
    assert compare("plain", *outcomes, [KNOWN]).unknown


def test_a_listed_test_that_does_not_differ_is_an_error() -> None:
    result = compare("named", {"m.A.test_listed": OK}, {"m.A.test_listed": OK}, [KNOWN])
    assert result.stale == ["m.A.test_listed"]
    assert "m.A.test_listed" in result.describe()


def test_a_racy_difference_may_be_absent() -> None:
    racy = Known(("m.A.test_listed",), "named", "because", "by looking", racy=True)
    assert not compare("named", {"m.A.test_listed": OK}, {"m.A.test_listed": OK}, [racy]).stale


@needs_tests
def test_a_test_that_ends_the_process_is_named_and_the_others_go_on(
    plain_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("modules")
    (directory / "deadly.py").write_text(
        "import os, unittest\n"
        "class T(unittest.TestCase):\n"
        "    def test_a(self): pass\n"
        "    def test_b(self): os._exit(3)\n"
        "    def test_c(self): self.skipTest('no')\n"
        "    def test_d(self):\n"
        "        with self.subTest(): self.fail('sub')\n"
        "class U(unittest.TestCase):\n"
        "    def setUpClass(): raise OSError\n"
        "    def test_e(self): pass\n"
    )
    module = Module("deadly", ("deadly",))
    outcomes = run(module, "baseline", {**plain_environment, "PYTHONPATH": str(directory)})
    kinds = {test_id: outcome.kind for test_id, outcome in outcomes.items()}
    assert kinds == {
        "deadly.T.test_a": "ok",
        "deadly.T.test_b": "died",
        "deadly.T.test_c": "skip",
        "deadly.T.test_d": "fail",
        "setUpClass (deadly.U)": "error",
    }
