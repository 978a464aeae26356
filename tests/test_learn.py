"""What a node learns in the background completes the profile of the ports that it is about, and no others."""

from __future__ import annotations

import math

import pytest
import trio
from stun_support import serving

from ntcpsock._address import Endpoint
from ntcpsock._traversal import learn
from ntcpsock._traversal.gather import gather_tcp
from ntcpsock._traversal.learn import Learned
from ntcpsock._traversal.punch.message import Candidate, NATProfile


async def test_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learn, "is_loopback", lambda host: False)
    monkeypatch.setattr(learn, "LEARN_AFTER", 0.0)
    async with serving(other_address="127.0.0.2") as addresses:
        servers = [addresses.primary, Endpoint("127.0.0.1", 9)]
        learned = Learned(servers)
        here, elsewhere = await gather_tcp(servers), await gather_tcp(servers)
        elsewhere.candidates = (Candidate("srflx", "tcp", "203.0.113.1", 5),)
        try:
            before = here.profile
            assert learned.inform(here).profile == before
            assert await learned.learn()
            assert learned.inform(here) is here
            assert here.profile == NATProfile(before.translated, before.mapping, "endpoint-independent")
            assert learned.inform(elsewhere).profile == before
        finally:
            here.close()
            elsewhere.close()
        # Two connections back, and nothing else that costs a server anything.
        assert addresses.counters.connect_backs <= 2


async def test_nothing_to_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learn, "LEARN_AFTER", math.inf)
    for servers in ([], [Endpoint("127.0.0.1", 9)]):
        with trio.fail_after(60):
            assert not await Learned(servers).learn()
    monkeypatch.setattr(learn, "is_loopback", lambda host: False)
    monkeypatch.setattr(learn, "LEARN_AFTER", 0.0)
    assert not await Learned([Endpoint("127.0.0.1", 9)]).learn()
