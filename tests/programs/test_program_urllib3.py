"""urllib3: its pools, retries, streams, threads, and TLS inside."""

from __future__ import annotations

from pathlib import Path

import pytest
from program_support import PAYLOAD, run
from web_support import ASGI_APP, TLS, WAIT, serving

from ntcpsock.cli.stage import open_loopback_stage

pytest.importorskip("urllib3", reason="urllib3 is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")

CLIENT = (
    PAYLOAD
    + WAIT
    + """
import io, sys, threading
import urllib3

url = sys.argv[1]
wait_until_up("alice.ntcp", 8000)
pools = urllib3.PoolManager(maxsize=4, block=True, ca_certs="certificate.pem", timeout=60)
assert hashlib.sha256(pools.request("GET", url + "/payload").data).hexdigest() == DIGEST
assert pools.request("POST", url + "/digest", body=io.BytesIO(PAYLOAD)).data.decode() == DIGEST
with pools.request("GET", url + "/stream", preload_content=False) as response:
    assert b"".join(response.stream(4096)) == PAYLOAD[:1_000_000]

answers = []

def get():
    answers.append(pools.request("GET", url + "/pid").status)

threads = [threading.Thread(target=get) for _ in range(20)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
pool = pools.connection_from_url(url)
print(answers.count(200), pool.num_connections <= 4)

try:
    pools.request("GET", url.replace("8000", "8001"), retries=urllib3.Retry(connect=2, backoff_factor=0.01))
except urllib3.exceptions.MaxRetryError as error:
    print(type(error.reason).__name__)
"""
)


@pytest.mark.parametrize("scheme", [pytest.param("http", marks=pytest.mark.slow), "https"])
def test_urllib3(tmp_path: Path, scheme: str) -> None:
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
    with open_loopback_stage() as stage, serving(stage, tmp_path, "alice", *words):
        lines = run(stage, tmp_path, "bob", CLIENT, f"{scheme}://alice.ntcp:8000")
    assert lines == ["20 True", "NewConnectionError"]
