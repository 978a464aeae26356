"""What is said where raw packets are not possible, and that nothing needs them otherwise."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ntcpsock._raw import privileges
from ntcpsock._raw.privileges import check_raw, missing_for_raw

SCRIPT = Path(__file__).parents[1] / "servers" / "udp_broker.py"
WITHOUT = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw"]

unprivileged = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="drops a capability, so it needs root and setpriv",
)


def without_net_raw(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run Python as root without CAP_NET_RAW."""
    return subprocess.run(
        [*WITHOUT, sys.executable, *argv], capture_output=True, text=True, timeout=60, check=False
    )


@unprivileged
def test_root_without_the_capability_hears_what_is_missing() -> None:
    code = "from ntcpsock._raw.privileges import missing_for_raw; print(missing_for_raw())"
    done = without_net_raw("-c", code)
    assert "run it as root, or give it CAP_NET_RAW" in done.stdout
    assert "pip install" not in done.stdout


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileges, "_may_open_raw_socket", lambda: True)
    monkeypatch.setattr(privileges, "find_spec", lambda name: None if name == "pcapy" else object())
    assert missing_for_raw() == "pcapy-ng: pip install 'ntcpsock[raw]'"
    assert missing_for_raw(capturing=False) is None


def test_all_that_is_missing_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileges, "_may_open_raw_socket", lambda: False)
    monkeypatch.setattr(privileges, "find_spec", lambda name: None)
    with pytest.raises(PermissionError, match=r"tcp-stunt1 lacks the right.*CAP_NET_RAW.*scapy and pcapy-ng"):
        check_raw("tcp-stunt1")


def test_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert missing_for_raw() == "raw packets are implemented for Linux only"


def test_nothing_of_it_is_imported_to_find_out() -> None:
    code = (
        "import sys; from ntcpsock._node import Node; from ntcpsock._raw.privileges import missing_for_raw;"
        "missing_for_raw(); print([m for m in ('scapy', 'pcapy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@unprivileged
def test_a_broker_that_may_not_spoof_does_not_start(tmp_path: Path) -> None:
    done = without_net_raw(str(SCRIPT), "--port", "0", "--state-dir", str(tmp_path), "--allow-spoofing")
    assert done.returncode == 1
    assert done.stderr.startswith("udp_broker: --allow-spoofing lacks the right to send raw packets")
    assert "Traceback" not in done.stderr


@unprivileged
def test_ntcp_serve_that_may_not_spoof_does_not_start(tmp_path: Path) -> None:
    ports = ["--broker-port", "0", "--stun-port", "0", "--state-dir", str(tmp_path)]
    done = without_net_raw("-m", "ntcpsock", "serve", "--listen", "127.0.0.1", *ports, "--allow-spoofing")
    assert done.returncode != 0
    assert "--allow-spoofing lacks the right to send raw packets" in done.stderr
    assert "cannot listen" not in done.stderr
    assert "Traceback" not in done.stderr
