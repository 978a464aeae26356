"""Shows the packets of a host's devices: `python -m ntcpsock.testing.natlab.sniffer DEVICE...`.

It says `ready`, then a line for each IPv4 packet: its time, whether it leaves, its beginning. Until SIGTERM.
"""

from __future__ import annotations

import json
import select
import signal
import socket
import struct
import sys
import time

from ntcpsock.testing.natlab.sighting import SEEN_BYTES

_ALL_PROTOCOLS = 3  # ETH_P_ALL
_OUTGOING = 4  # PACKET_OUTGOING of packet(7)
_ETHERTYPE_IP = 0x0800
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("@ll")


def main() -> None:
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    # The kernel stamps packets with the time of day.
    to_monotonic = time.monotonic() - time.time()
    sockets = [_open(device) for device in sys.argv[1:]]
    print("ready", flush=True)
    while not stopped:
        for sock in select.select(sockets, [], [], 0.1)[0]:
            _say(sock, to_monotonic)
    for sock in sockets:
        sock.setblocking(False)
        while _say(sock, to_monotonic):
            pass


def _open(device: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ALL_PROTOCOLS))
    sock.bind((device, _ALL_PROTOCOLS))
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    return sock


def _say(sock: socket.socket, to_monotonic: float) -> bool:
    """Print a packet, if there is one."""
    try:
        packet, ancillary, _, address = sock.recvmsg(SEEN_BYTES, 64)
    except BlockingIOError:
        return False
    if address[1] == _ETHERTYPE_IP:
        stamps = [data for _, kind, data in ancillary if kind == _SO_TIMESTAMPNS]
        seconds, nanoseconds = _TIMESPEC.unpack(stamps[0])
        moment = seconds + nanoseconds / 1e9 + to_monotonic
        print(json.dumps([moment, address[2] == _OUTGOING, packet.hex()]), flush=True)
    return True


if __name__ == "__main__":
    main()
