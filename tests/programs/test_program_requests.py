"""requests: a session with its pool, streams both ways, threads, and TLS inside."""

from __future__ import annotations

from pathlib import Path

import pytest
from program_support import PAYLOAD, run
from web_support import ASGI_APP, TLS, WAIT, serving

from ntcpsock.cli.stage import open_loopback_stage

pytest.importorskip("requests", reason="requests is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")

CLIENT = (
    PAYLOAD
    + WAIT
    + """
import io, sys
from concurrent.futures import ThreadPoolExecutor
import requests

url = sys.argv[1]
wait_until_up("alice.ntcp", 8000)
session = requests.Session()
session.trust_env = False  # its variables have precedence over what follows
session.verify = "certificate.pem"
assert hashlib.sha256(session.get(url + "/payload", timeout=60).content).hexdigest() == DIGEST
assert session.post(url + "/digest", data=io.BytesIO(PAYLOAD), timeout=60).text == DIGEST
parts = (PAYLOAD[at : at + 50_000] for at in range(0, len(PAYLOAD), 50_000))
assert session.post(url + "/digest", data=parts, timeout=60).text == DIGEST  # chunked
with session.get(url + "/stream", stream=True, timeout=60) as response:
    assert b"".join(response.iter_content(4096)) == PAYLOAD[:1_000_000]

# One connection served them all.
pools = session.get_adapter(url).poolmanager.pools
(pool,) = [pools.get(key) for key in pools.keys()]
print(pool.num_connections, pool.num_requests)

with ThreadPoolExecutor(20) as executor:
    print(len([executor.submit(lambda: session.get(url + "/pid", timeout=60).text) for _ in range(20)]))

for host, port in (("alice.ntcp", 8001), ("nobody.ntcp", 8000)):
    try:
        requests.get(f"{url.partition(':')[0]}://{host}:{port}/", timeout=60)
    except requests.ConnectionError as error:
        print("refused" if "nothing listens" in str(error) or "refused" in str(error).lower() else "no name")
"""
)


@pytest.mark.parametrize("scheme", [pytest.param("http", marks=pytest.mark.slow), "https"])
def test_requests(tmp_path: Path, scheme: str) -> None:
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
    assert lines == ["1 4", "20", "refused", "no name"]
