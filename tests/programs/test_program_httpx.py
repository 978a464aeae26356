"""httpx: its synchronous client, and the asynchronous one on asyncio, on uvloop and on trio, with TLS inside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from program_support import PAYLOAD, run
from web_support import ASGI_APP, ASYNC_CLIENT, TLS, WAIT, serving

from ntcpsock.cli.stage import Stage, open_loopback_stage

pytest.importorskip("httpx", reason="httpx is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")

SYNC_CLIENT = (
    PAYLOAD
    + WAIT
    + """
import ssl, sys
from concurrent.futures import ThreadPoolExecutor
import httpx

url = sys.argv[1]
wait_until_up("alice.ntcp", 8000)
with httpx.Client(base_url=url, timeout=60, verify=ssl.create_default_context(cafile="certificate.pem")) as client:
    assert hashlib.sha256(client.get("/payload").content).hexdigest() == DIGEST
    assert client.post("/digest", content=PAYLOAD).text == DIGEST
    with client.stream("GET", "/stream") as response:
        assert b"".join(response.iter_raw()) == PAYLOAD[:1_000_000]
    with ThreadPoolExecutor(20) as executor:
        print(len({executor.submit(client.get, "/pid").result().status_code for _ in range(20)}))
    try:
        client.get(url.replace("8000", "8001"))
    except httpx.ConnectError as error:
        print(type(error).__name__)
"""
)
UVLOOP = "import uvloop\nuvloop.run(main())\n"
TRIO = "import trio\ntrio.run(main)\n"


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with open_loopback_stage() as opened:
        yield opened


@pytest.mark.parametrize("scheme", [pytest.param("http", marks=pytest.mark.slow), "https"])
def test_httpx(stage: Stage, tmp_path: Path, scheme: str) -> None:
    (tmp_path / "app.py").write_text(ASGI_APP)
    words = [
        "uvicorn",
        "app:app",
        "--host",
        "alice.ntcp",
        "--port",
        "8000",
        *(TLS if scheme == "https" else ()),
    ]
    url = f"{scheme}://alice.ntcp:8000"
    with serving(stage, tmp_path, "alice", *words):
        assert run(stage, tmp_path, "sync", SYNC_CLIENT, url) == ["1", "ConnectError"]
        for ending in ("asyncio.run(main())\n", UVLOOP, TRIO):
            assert run(stage, tmp_path, "asking", ASYNC_CLIENT + ending, url) == ["20", "ConnectError"]
