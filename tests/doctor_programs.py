"""What the lab tests of discovery run in hosts."""

from __future__ import annotations

import os

import trio

from ntcpsock._config import Config
from ntcpsock.trio import open_node


def learned_profile(environment: dict[str, str]) -> tuple[object, ...]:
    """The profile in the card and in the offers of a listening node, once it knows how its NAT filters."""
    os.environ.update(environment)

    async def main() -> tuple[object, ...]:
        async with open_node(Config.load(name="alice")) as node, await node.open_listener(8000):
            with trio.fail_after(60):
                while (port := node.listening_port) is None or port.profile.filtering == "unknown":
                    await trio.sleep(0.05)
            dialling = await node.take_port()
            profile = dialling.profile
            dialling.close()
            assert profile == port.profile
            return (profile.translated, profile.mapping, profile.filtering, profile.stray_syn)

    return trio.run(main)
