"""The status page: what it says, who may see it, and that a browser draws it, with nothing from elsewhere."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import trio
from relay_support import PATIENCE, running_broker, say
from test_server_operation import SERVERS, get, running, samples
from world import open_world

from ntcpsock._address import Endpoint
from ntcpsock._servers.outcomes import Outcomes
from ntcpsock._servers.status_page.history import History
from ntcpsock._traversal.broker.operation import Outcome

BROWSER = next(
    (
        path
        for path in map(shutil.which, ("chromium-headless-shell", "chromium", "chromium-browser"))
        if path is not None
    ),
    None,
)
ASSETS = Path(__file__).parents[1] / "ntcpsock" / "_servers" / "status_page"


def test_history_keeps_gauges_and_makes_rates() -> None:
    history = History(frozenset({"nodes"}), interval=5.0, length=3)
    assert history.rows() == {}
    for second, nodes, introductions in ((0, 1, 0), (5, 2, 10), (10, 3, 10), (15, 4, 60), (20, 5, 0)):
        history.add({"nodes": nodes, "introductions": introductions}, float(second))
    # The oldest is gone; a counter that went back (another process) is no negative rate.
    assert history.rows() == {"nodes": [3, 4, 5], "introductions": [0, 10, 0]}
    history.add({"nodes": 9, "introductions": 5}, 20.0)
    assert history.rows()["nodes"] == [3, 4, 5], "no time has passed"


def test_outcomes_are_a_bounded_table() -> None:
    outcomes = Outcomes()
    for number in range(2000):
        outcomes.note(Outcome(f"invented-{number}", "tcp", "none", "unknown", 10))
    outcomes.note(Outcome("relay", "relay", "none", "unknown", 300))
    outcomes.note(Outcome("", "", "none", "unknown", 10_000))
    assert outcomes.connected == {("other", "tcp"): 2000, ("relay", "relay"): 1}
    assert outcomes.by_pair == {("none", "unknown"): [2000, 1, 1]}
    assert (outcomes.failed, sum(outcomes.counts)) == (1, 2001)


async def test_nodes_tell_how_their_dials_end_and_nothing_else(tmp_path: Path) -> None:
    async with open_world(tmp_path, tcp=True) as world:
        async with (
            world.node("alice") as alice,
            world.node() as bob,
            world.node(relay="only") as carol,
            world.node("silent", outcomes="off") as silent,
        ):
            async with await alice.open_listener(8000):
                (await bob.open_stream("alice", 8000)).reset()
                (await carol.open_stream("alice", 8000)).reset()
                (await silent.open_stream("alice", 8000)).reset()
                with pytest.raises(OSError, match="nobody"):
                    await bob.open_stream("nobody", 8000)
            outcomes = world.server.core.outcomes
            with trio.fail_after(PATIENCE):
                while sum(outcomes.connected.values()) < 2:
                    await trio.sleep(0.01)
            assert outcomes.connected["relay", "relay"] == 1
            (direct,) = (pair for pair in outcomes.connected if pair[1] != "relay")
            assert direct[1] in ("lan", "tcp")
            assert outcomes.failed == 0, "a name that nobody has says nothing of NATs"
            text = (await trio.to_thread.run_sync(get, world.server.address, "/metrics"))[1]
            assert f'ntcp_outcomes_total{{kind="{direct[1]}",technique="{direct[0]}"}} 1.0' in text
            assert samples(text)["ntcp_connect_seconds_count"] == 2
            document = (await trio.to_thread.run_sync(get, world.server.address, "/status/data.json"))[1]
            assert json.loads(document)["outcomes"]["failed"] == 0
            for secret in ("alice", alice.node_id, bob.node_id, carol.node_id):
                assert secret not in document
    # Names and keys cannot even be said: a message has words of a list, and numbers.
    assert Outcome.__struct_fields__ == ("technique", "kind", "dialer", "listener", "milliseconds")


async def test_who_sees_what() -> None:
    forwarded = b"X-Forwarded-For: 192.0.2.1\r\n"
    async with running_broker() as server:
        for path in (b"/", b"/status/data.json"):
            for head, is_for_us in ((b"", True), (forwarded, False)):
                request = b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\n" + head + b"\r\n"
                answer = await say(server.address, request)
                assert (b"Content-Security-Policy: default-src 'none'; " in answer) is is_for_us
                if path == b"/":
                    assert answer.startswith(b"HTTP/1.1 200 ")
                    assert (b"An ntcpsock broker, key " in answer) is not is_for_us
                else:
                    assert answer.startswith(b"HTTP/1.1 200 " if is_for_us else b"HTTP/1.1 403 ")


def test_nothing_comes_from_elsewhere_and_nothing_is_in_line() -> None:
    page = (ASSETS / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|style=|\son\w+=|<script(?! src=)", page)
    for address in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert address.startswith(("/status/", "/metrics", "data:,")), address
    for script in ("page.js", "charts.js"):
        text = (ASSETS / script).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "http:",
            "https:",
        ):
            assert word not in text, word


def browse(address: Endpoint, *options: str) -> subprocess.CompletedProcess[str]:
    """A headless browser looks at the page for some seconds of its own time."""
    assert BROWSER is not None
    return subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--virtual-time-budget=4000",
            "--enable-logging=stderr",
            *options,
            f"http://{address}/",
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What the browser's console says: errors of scripts, and what the policy has forbidden."""
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium is installed (Debian: chromium-headless-shell)"
)


@needs_browser
async def test_a_browser_draws_it(tmp_path: Path) -> None:
    async with running_broker() as server:
        core = server.core
        for technique, kind, dialer, listener in (
            ("tcp-open", "tcp", "endpoint-independent", "none"),
            ("tcp-open", "tcp", "endpoint-independent", "endpoint-independent"),
            ("udp-punch", "udp", "endpoint-independent", "endpoint-independent"),
            ("relay", "relay", "address-and-port-dependent", "address-and-port-dependent"),
            ("", "", "address-and-port-dependent", "session-dependent"),
        ):
            core.outcomes.note(Outcome(technique, kind, dialer, listener, 250))  # type: ignore[arg-type]
        # Whatever else is shown, it is text.
        core.dropped["<script>alert(1)</script>"] += 3
        done = await trio.to_thread.run_sync(browse, server.address, "--dump-dom")
        assert complaints(done) == []
        dom = done.stdout
        assert '<p id="state" class="state good" role="status">ready</p>' in dom
        for words in (
            "tcp-open (tcp)",
            "2 · 40%",
            "none: failed",
            "Time to connect",
            "address- and port-dependent",
            "this one",
            "&lt;script&gt;alert(1)",
            "An ntcpsock",
        ):
            assert (words in dom) is (words != "An ntcpsock"), words
        for tile in ("nodes", "introductions", "refused", "pairs", "relay_bytes", "connections", "memory"):
            assert f'id="tile-{tile}"' in dom
        assert "100%" in dom, "of a pair of NATs"
        assert dom.count("<rect ") == 11, "the bars of the histogram"


@needs_browser
@pytest.mark.parametrize("size", ["390,844", "1280,900"])
async def test_it_fits_a_phone_and_a_desk_in_light_and_dark(size: str, tmp_path: Path) -> None:
    async with running_broker() as server:
        pictures = []
        for scheme in ("0", "1"):
            picture = tmp_path / f"{scheme}.png"
            done = await trio.to_thread.run_sync(
                browse,
                server.address,
                f"--window-size={size}",
                f"--screenshot={picture}",
                f"--blink-settings=preferredColorScheme={scheme}",
            )
            assert complaints(done) == []
            pictures.append(picture.read_bytes())
            assert pictures[-1].startswith(b"\x89PNG")
        assert pictures[0] != pictures[1]


@needs_browser
async def test_the_page_says_when_the_server_is_gone() -> None:
    async with running_broker() as server:
        assert server.web is not None
        server.web._handlers = {
            path: handler for path, handler in server.web._handlers.items() if path != "/status/data.json"
        }
        done = await trio.to_thread.run_sync(browse, server.address, "--dump-dom")
        assert "no answer: the server answers 404" in done.stdout


@needs_browser
@pytest.mark.parametrize(
    ("program", "title", "tile"), [("relay", "Relay", "pairs"), ("stun_server", "STUN server", "stun")]
)
def test_relay_and_stun_server_have_one_too(program: str, title: str, tile: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = Endpoint("127.0.0.1", probe.getsockname()[1])
    options = ["--listen", "127.0.0.1", "--port", "0"]
    if program == "stun_server":
        options += ["--metrics", str(place)]
    with running(str(SERVERS / f"{program}.py"), *options, NTCP_STATE=str(tmp_path)) as (line, process):
        if program == "relay":
            host, _, port = line.split()[1].rpartition(":")
            place = Endpoint(host, int(port))
        done = browse(place, "--dump-dom")
        assert complaints(done) == []
        assert f'<span id="title">{title}</span>' in done.stdout
        assert f'id="tile-{tile}"' in done.stdout
        process.terminate()
        assert process.wait(PATIENCE) == 0
