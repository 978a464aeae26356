"""SIGHUP: settings are read again, all or none, and what is wrong is said."""

from __future__ import annotations

import json
import signal
import subprocess
from argparse import Namespace
from pathlib import Path

import pytest
from broker_support import make_identity
from test_admin import SERVE, admin
from test_server_operation import SERVERS, running

from ntcpsock._errors import ConfigurationError
from ntcpsock._servers.gate import Gate
from ntcpsock._servers.operated import relay_limits
from ntcpsock._servers.options import POLICY, Source, parse_arguments
from ntcpsock._servers.policy import Policy
from ntcpsock._servers.quotas import Quotas
from ntcpsock._servers.relay import RelayLimits
from ntcpsock._servers.reloading import Reloader, reload_gate, reload_logs

ALICE = make_identity(1)


def settings(path: Path, *flags: str) -> Namespace:
    return parse_arguments("a test", ("port", *POLICY), ["--config", str(path), *flags], port=6060)


def test_policies_bans_and_quotas_change_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "broker.toml"
    file.write_text("")
    gate = Gate()
    source: Source = settings(file, "--introductions-of-a-node", "7").source
    reloader = Reloader(source, [reload_gate(gate)])
    file.write_text(
        f'names = "list"\nreserve = ["alice={ALICE.node_id}"]\nban = ["192.0.2.0/24"]\n'
        "introductions_of_a_node = 5\nregistrations_of_a_node = 2\n"
    )
    reloader.reload()
    assert gate.policy == Policy("list", {"alice": ALICE.public_key})
    # The flag comes first, now as before.
    assert gate.quotas == Quotas(registrations_of_a_node=2.0, introductions_of_a_node=7.0)
    assert gate.bans.has_host("192.0.2.77")
    for wrong, words in (
        ('names = "nobody"', "open, token or list"),
        ('ban = ["198.51.100.1", "nobody"]', "no node id"),
        ("registrations_of_a_node = 0", "above 0"),
        ("nonsense = 1", "unknown setting"),
        ("names = ", "broker.toml"),
    ):
        file.write_text(f"private = true\nadmit = ['{ALICE.node_id}']\n{wrong}\n")
        with pytest.raises(ConfigurationError, match=words):
            reloader.reload()
        assert gate.policy.names == "list", "what stood before stands"
        assert not gate.policy.private
        assert gate.bans.has_host("192.0.2.77")
        assert not gate.bans.has_host("198.51.100.1")
    file.write_text("port = 7\n")
    reloader.reload()
    assert gate.policy == Policy()
    assert len(gate.bans) == 0
    assert "needs a restart: port" in caplog.text
    caplog.clear()
    reloader.reload()
    assert not caplog.text, "once is enough"


def test_the_log_s_form_and_level() -> None:
    with pytest.raises(ConfigurationError, match="log_level: must be one of"):
        reload_logs({"log": "text", "log_level": "loud"})
    with pytest.raises(ConfigurationError, match="text or json"):
        reload_logs({"log": "loud"})


def test_what_a_relay_has_without_settings() -> None:
    assert relay_limits({}) == RelayLimits()
    assert relay_limits({"sessions": 5, "rate_of_an_address": 7.0}) == RelayLimits(
        sessions=5, bytes_per_second_of_an_address=7.0
    )


@pytest.mark.parametrize(
    "command",
    [SERVE, (str(SERVERS / "tcp_broker.py"), "--listen", "127.0.0.1", "--port", "0")],
    ids=["serve", "tcp_broker"],
)
def test_a_running_server(command: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('log = "json"\n')
    with running(*command, "--config", str(file), NTCP_STATE=str(tmp_path)) as (_, process):
        assert process.stderr is not None

        def hang_up(text: str) -> list[dict[str, str]]:
            file.write_text(f'log = "json"\n{text}\n')
            process.send_signal(signal.SIGHUP)
            events: list[dict[str, str]] = []
            while not events or "read again" not in events[-1]["message"]:
                assert process.stderr is not None
                events.append(json.loads(process.stderr.readline()))
            return events

        assert json.loads(process.stderr.readline())["message"].startswith("serving")
        assert hang_up('names = "token"\ntoken = ["a good token"]')[-1]["message"] == "files were read again"
        told = json.loads(admin("status", "--json", NTCP_STATE=str(tmp_path)).stdout)
        assert told["broker"]["policy"] == "token"
        (wrong,) = hang_up('names = "nobody"')
        assert (wrong["level"], wrong["message"].startswith("not read again: names: must be")) == (
            "error",
            True,
        )
        told = json.loads(admin("status", "--json", NTCP_STATE=str(tmp_path)).stdout)
        assert told["broker"]["policy"] == "token"
        events = hang_up('listen = ["127.0.0.1", "127.0.0.2"]\ndrain = 1.5')
        words = [event["message"] for event in events if event["level"] == "warning"]
        assert words == ["changed in the settings, and needs a restart: drain"], (
            "a flag has said where to listen"
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_what_is_wrong_at_the_start_is_said_in_a_line(tmp_path: Path) -> None:
    import sys

    for option, words in (
        (("--names", "nobody"), "open, token or list"),
        (("--private",), "name the nodes"),
        (("--ban", "nobody"), "no node id"),
        (("--relay-node", "nobody"), "no node id"),
        (("--log-level", "loud"), "must be one of"),
    ):
        for command in (SERVE, (str(SERVERS / "tcp_broker.py"), "--listen", "127.0.0.1", "--port", "0")):
            done = subprocess.run(
                [sys.executable, *command, "--state-dir", str(tmp_path), *option],
                capture_output=True,
                text=True,
            )
            assert done.returncode == 1
            assert words in done.stderr
            assert done.stderr.count("\n") == 1
