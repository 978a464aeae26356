"""`python -m benchmarks.bare_broker`: the yardstick of `benchmarks.broker`, the least that a broker has to do.

It takes the same datagrams, and sends as many as a broker would, as long, with the same cryptography on them: one hash
for a keep-alive, three boxes for an introduction. It knows nobody and reads nothing, so nobody is served by it; what a
broker needs beyond that is its own. Asked and ended as `benchmarks.measured_broker`.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import threading
import time
from hashlib import blake2s

from ntcpsock._address import BrokerAddress
from ntcpsock._identity import Identity
from ntcpsock._servers import mmsg
from ntcpsock._servers.socket_filter import enlarge, only_frames
from ntcpsock._traversal.broker.boxes import Boxes
from ntcpsock._traversal.broker.fields import MAX_DATAGRAM
from ntcpsock._traversal.broker.frame import HEADER_LENGTH, NONCE_LENGTH, OVERHEAD
from ntcpsock._traversal.broker.short_keep_alive import (
    PROVED_LENGTH,
    PURPOSE,
    SHORT_ACK_LENGTH,
    SHORT_KEEP_ALIVE_LENGTH,
)

# As the broker has them.
_BATCH, _SIZE, _TOGETHER, _PAUSE = 256, MAX_DATAGRAM + 8, 64, 0.002
_ROOM = 4 << 20
_KEY = bytes(32)
_NONCE = bytes(NONCE_LENGTH)
#: An Introduced and a Deliver of the load's have some 410 octets in their boxes.
_PAYLOAD = bytes(410)
_WORD = bytes(OVERHEAD) + _PAYLOAD
_ACK = bytes(SHORT_ACK_LENGTH)


class Bare:
    """One socket's."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._batch = mmsg.Batch(_BATCH, _SIZE, ipv6=False)
        self._acks = mmsg.EvenOutbox(_TOGETHER, len(_ACK), b"", ipv6=False)
        self._words = mmsg.EvenOutbox(_TOGETHER, len(_WORD), b"", ipv6=False)
        self._boxes = Boxes(MAX_DATAGRAM)

    def serve_some(self) -> int:
        """How many datagrams it was."""
        count = self._batch.receive(self._descriptor)
        frames = self._batch.received(count)
        keep_alives = [entry for entry in frames if len(entry[0]) == SHORT_KEEP_ALIVE_LENGTH]
        others = [entry for entry in frames if len(entry[0]) != SHORT_KEEP_ALIVE_LENGTH]
        for frame, _ in keep_alives:
            blake2s(frame[:PROVED_LENGTH], key=_KEY, person=PURPOSE).digest()
        # Opening costs as much as sealing, and this key opens nothing.
        seal = self._boxes.seal
        for frame, _ in others:
            seal(frame[HEADER_LENGTH:], _NONCE, _KEY)
            seal(_PAYLOAD, _NONCE, _KEY)
            seal(_PAYLOAD, _NONCE, _KEY)
        self._acks.send_all(
            self._descriptor, [_ACK] * len(keep_alives), [origin for _, origin in keep_alives]
        )
        # To whoever asks, and to somebody else.
        askers = [origin for _, origin in others]
        self._words.send_all(self._descriptor, [_WORD] * (2 * len(askers)), askers + askers[::-1])
        return count


def serve(sock: socket.socket) -> None:
    """Until the process ends."""
    bare, moderation = Bare(sock.fileno()), mmsg.Moderation(pause=_PAUSE)
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    while True:
        poll.poll()
        pause: float | None = None
        while pause is None or pause:
            if pause:
                time.sleep(pause)
            began = time.monotonic()
            count = bare.serve_some()
            while count == _BATCH:
                count = bare.serve_some()
            pause = moderation.pause(began, time.monotonic(), full=False) if count else 0.0


def tell() -> None:
    """Answer each line of standard input; with its end the process ends."""
    for _ in sys.stdin:
        print(json.dumps({"cpu": time.process_time()}), flush=True)
    os._exit(0)


def main() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        enlarge(sock, _ROOM)
        only_frames(sock)
        sock.bind(("127.0.0.1", 0))
        host, port = sock.getsockname()
        address = BrokerAddress(host, port, Identity.generate().public_key)
        print(f"ready {address}", os.getpid(), flush=True)
        threading.Thread(target=tell, daemon=True).start()
        serve(sock)


if __name__ == "__main__":
    main()
