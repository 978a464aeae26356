"""The script that has a hundred thousand nodes come back at once, with a few."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis_support import needs_redis, running_cluster, running_redis

from benchmarks.reconnect import Stage
from ntcpsock._servers import mmsg


@needs_redis
@pytest.mark.skipif(not mmsg.AVAILABLE, reason="no recvmmsg here")
def test_nodes_come_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Streams, names and thieves are looked at."""
    with running_redis(tmp_path / "redis") as redis:
        with running_cluster(tmp_path, 3, "--store", redis.url) as brokers:
            stage = Stage(tmp_path, redis, brokers, 40, keep_alive=1.0)
            try:
                for spread in (0.0, 0.2):
                    assert stage.round(spread) > 0.0
            finally:
                stage.crowd.close()
    said = capsys.readouterr().out
    assert said.count("40 nodes come to 2 others") == 2
    assert said.count("1 thieves were refused") == 2
    assert said.count("none is missing") == 2
    assert said.count("all with the owners that they had") == 2
