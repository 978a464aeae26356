"""The shipped files of a cluster: nginx before three brokers, as the real one, and what compose is told."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
import typer.main
import yaml  # type: ignore[import-untyped]
from certificates import Authority
from redis_support import (
    PATIENCE,
    BrokerProcess,
    free_port,
    needs_redis,
    running_redis,
    share_keys,
)
from test_nginx import NGINX, placed, start, wait_for
from test_relay_connect import check_both_ways, connect

from ntcpsock._address import BrokerAddress, parse_broker
from ntcpsock._config import Config
from ntcpsock._node import Node
from ntcpsock._session.stream import NTCPStream
from ntcpsock.cli.app import app
from ntcpsock.trio import open_node

SERVERS = Path(__file__).parents[1] / "servers"
CONFIG = SERVERS / "nginx-cluster.conf"
COMPOSE = SERVERS / "container" / "cluster.yaml"
IMAGE = SERVERS / "container" / "Containerfile"
PROGRAM = Path(sys.executable).with_name("ntcp")
PLACES = ("127.0.0.1:6060", "127.0.0.1:6061", "127.0.0.1:6062")


def configuration(folder: Path, brokers: list[BrokerProcess], front: int, files: tuple[Path, Path]) -> Path:
    """The shipped one with other places in it, so that it runs beside whatever else runs here, as any user."""
    text = CONFIG.read_text(encoding="utf-8")
    for place, broker in zip(PLACES, brokers, strict=True):
        assert text.count(f"server {place} ") == 2  # signalling and relay
        text = text.replace(f"server {place} ", f"server {broker.host}:{broker.port} ")
    return placed(text, folder, f"127.0.0.1:{front}", files)


@needs_redis
@pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: nginx-light)")
@pytest.mark.parametrize("killed", [1, pytest.param(3, marks=pytest.mark.slow)])
async def test_nodes_meet_through_a_front_and_outlive_its_brokers(tmp_path: Path, killed: int) -> None:
    """Both of a relayed connection come to the same relay, whichever brokers they are at."""
    authority = Authority(tmp_path)
    with running_redis(tmp_path / "redis") as redis, ExitStack() as stack:
        brokers = []
        for number in range(3):
            state = tmp_path / f"broker{number}"
            share_keys(tmp_path, state)
            store = ("--store", redis.url, "--behind", "127.0.0.1", "--drain", "0")
            broker = BrokerProcess("tcp_broker.py", "127.0.0.1", free_port(), state, *store)
            stack.callback(broker.kill)
            brokers.append(broker)
            await trio.to_thread.run_sync(broker.start)
        front = free_port()
        config = configuration(tmp_path, brokers, front, authority.issue(tmp_path, "localhost"))
        nginx = start(tmp_path, config)
        stack.callback(nginx.wait)
        stack.callback(nginx.terminate)
        await trio.to_thread.run_sync(wait_for, "127.0.0.1", front)
        uri = str(BrokerAddress("localhost", front, brokers[0].address.key, tls=True))
        settings = Config(
            broker=uri, ca_file=authority.file, keep_alive="fixed", keep_alive_interval=1.0, relay="only"
        )
        async with (
            open_node(settings, name="alice", state_dir=tmp_path / "alice") as alice,
            open_node(settings, state_dir=tmp_path / "bob") as bob,
            open_node(settings, state_dir=tmp_path / "carol") as carol,
        ):
            async with await alice.open_listener(8000) as listening:
                for _ in range(4):
                    for dialler in (bob, carol):
                        mine, theirs = await connect(dialler, listening)
                        assert mine.path.kind == "relay"
                        await check_both_ways(mine, theirs)
                assert sum(sessions(broker) > 0 for broker in brokers) == 3
                for broker in brokers[:killed]:
                    broker.kill()
                    with trio.fail_after(PATIENCE):
                        mine = await open_again(bob)
                        await check_both_ways(mine, await listening.accept())
                    await trio.to_thread.run_sync(broker.start)


def sessions(broker: BrokerProcess) -> int:
    """How many it has opened."""
    with socket.create_connection((broker.host, broker.port), PATIENCE) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        page = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    found = re.search(r"^ntcp_broker_sessions_total ([0-9.]+)$", page, re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


def test_the_compose_file_is_what_our_commands_and_its_own_parts_take() -> None:
    document: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    assert set(document) == {"x-broker", "services", "volumes"}
    services = document["services"]
    brokers = {name: service for name, service in services.items() if name.startswith("broker")}
    assert len(brokers) == 3
    group: Any = typer.main.get_command(app)
    serve = group.commands["serve"]
    ports: list[int] = []
    for name, service in brokers.items():
        given = serve.make_context("serve", list(service["command"])).params
        assert given["store"].startswith("redis://127.0.0.1:6379")
        assert given["behind"] == ["127.0.0.1"]
        ports += [given["broker_port"], given["stun_port"], given["other_stun_port"]]
        assert service["cap_drop"] == ["ALL"]
        assert service["network_mode"] == "host"
        assert f"state{name[-1]}:/var/lib/ntcp" in service["volumes"]
        if name != "broker1":
            # Its own state, with the first one's keys.
            assert "state1:/keys:ro" in service["volumes"]
            assert "cp -n /keys/broker.key /keys/relay.key /var/lib/ntcp/" in service["entrypoint"][2]
    assert len(set(ports)) == 9
    places = re.findall(r"server (127\.0\.0\.1:\d+) ", CONFIG.read_text(encoding="utf-8"))
    assert places == [f"127.0.0.1:{port}" for port in ports[::3]] * 2
    named = {
        volume.partition(":")[0] for service in services.values() for volume in service.get("volumes", ())
    }
    assert {name for name in named if not name.startswith(".")} == set(document["volumes"])
    for name in named:
        if name.startswith("..") or name == "./tls":
            assert name == "./tls" or (COMPOSE.parent / name).is_file()
    for service in services.values():
        for other in service.get("depends_on", ()):
            assert other in services
        if build := service.get("build"):
            assert (COMPOSE.parent / build["context"] / build["dockerfile"]).is_file()


@needs_redis
@pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: nginx-light)")
async def test_what_compose_starts_is_a_cluster_behind_its_front(tmp_path: Path) -> None:
    """The keys are handed on, nodes meet over TLS, and go on to do so when the broker that made the keys is killed."""
    authority = Authority(tmp_path)
    with running_redis(tmp_path / "redis") as redis, ExitStack() as stack:
        brokers = []
        for name in ("broker1", "broker2", "broker3"):
            broker = Composed(name, tmp_path, redis.url)
            stack.callback(broker.kill)
            await trio.to_thread.run_sync(broker.wait_until_ready)
            brokers.append(broker)
        assert len({broker.address.key for broker in brokers}) == 1
        text = CONFIG.read_text(encoding="utf-8")
        for place, broker in zip(PLACES, brokers, strict=True):
            text = text.replace(f"server {place} ", f"server {broker.address.host}:{broker.address.port} ")
        front = free_port()
        config = placed(text, tmp_path, f"127.0.0.1:{front}", authority.issue(tmp_path, "localhost"))
        nginx = start(tmp_path, config)
        stack.callback(nginx.wait)
        stack.callback(nginx.terminate)
        await trio.to_thread.run_sync(wait_for, "127.0.0.1", front)
        uri = str(BrokerAddress("localhost", front, brokers[0].address.key, tls=True))
        settings = Config(broker=uri, ca_file=authority.file, keep_alive="fixed", keep_alive_interval=1.0)
        async with (
            open_node(settings, name="alice", state_dir=tmp_path / "alice") as alice,
            open_node(settings, state_dir=tmp_path / "bob") as bob,
            await alice.open_listener(8000) as listening,
        ):
            await check_both_ways(*await connect(bob, listening))
            brokers[0].kill()
            with trio.fail_after(PATIENCE):
                mine = await open_again(bob)
                await check_both_ways(mine, await listening.accept())


async def open_again(dialler: Node) -> NTCPStream:
    """To alice, as soon as both have found another broker."""
    while True:
        try:
            return await dialler.open_stream("alice", 8000)
        except OSError:
            await trio.sleep(0.1)


class Composed:
    """A broker that is started with its service's own words, with the paths of `folder` and ports of this run."""

    def __init__(self, name: str, folder: Path, store: str) -> None:
        service = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"][name]
        image = re.search(r"^ENTRYPOINT (.*)$", IMAGE.read_text(encoding="utf-8"), re.MULTILINE)
        assert image is not None
        places = {"$$": "$", "redis://127.0.0.1:6379/0": store, "/opt/ntcp/bin/ntcp": str(PROGRAM)}
        for volume in service["volumes"]:
            state, _, inside = volume.removesuffix(":ro").partition(":")
            (folder / state).mkdir(mode=0o700, exist_ok=True)
            places[inside] = str(folder / state)
        words = []
        for word in (*service.get("entrypoint", json.loads(image[1])), *service["command"]):
            for ours, theirs in places.items():
                word = word.replace(ours, theirs)
            words.append(word)
        # What is said last holds.
        words += ["--listen", "127.0.0.1"]
        for option in ("--broker-port", "--stun-port", "--other-stun-port"):
            words += [option, str(free_port())]
        self._log = folder / f"{name}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, text=True)

    def wait_until_ready(self) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().split()
        assert line[:1] == ["ready"], self._log.read_text()
        self.address = parse_broker(line[1])

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.mark.parametrize("name", ["cluster.yaml", "compose.yaml"])
def test_what_the_compose_files_name_is_there(name: str) -> None:
    """Flags that `ntcp serve` takes, files, volumes; and the health that is asked for is at the port that it serves."""
    path = COMPOSE.with_name(name)
    document: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    group: Any = typer.main.get_command(app)
    serve = group.commands["serve"]
    for service in document["services"].values():
        if "build" in service:
            given = serve.make_context("serve", list(service["command"])).params
            health = " ".join(service["healthcheck"].get("test", ()))
            assert not health or f"http://127.0.0.1:{given['broker_port']}/healthz" in health
            assert (path.parent / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            if source.startswith(".."):
                assert (path.parent / source).is_file()
            else:
                # The certificate is the operator's.
                assert source == "./tls" or source in document["volumes"]


@needs_redis
def test_redis_takes_what_compose_tells_it(tmp_path: Path) -> None:
    words = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["redis"]["command"]
    assert words[0] == "redis-server"
    options = [str(word) for word in words[1:]]
    options[options.index("--port") + 1] = str(free_port())
    with running_redis(tmp_path / "redis", arguments=options) as redis:
        assert redis.ask("CONFIG", "GET", "appendfsync") == "2"
