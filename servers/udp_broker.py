#!/usr/bin/env python3
"""The UDP broker as a program: nodes register with it, find each other and are introduced.

    udp_broker.py --listen 0.0.0.0 --port 6060 --state-dir /var/lib/ntcp --stun 192.0.2.1:3478

Prints `ready ntcp://ADDR:PORT?key=KEY` when it serves; SIGINT and SIGTERM end it with exit code 0.
"""

from __future__ import annotations

from ntcpsock._address import DEFAULT_BROKER_PORT
from ntcpsock._servers.broker_script import run_broker

if __name__ == "__main__":
    names = ("allow_spoofing", "metrics", "metrics_from")
    run_broker("udp_broker", "ntcpsock's UDP broker", names, udp=True, tcp=False, port=DEFAULT_BROKER_PORT)
