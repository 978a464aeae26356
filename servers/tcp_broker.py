#!/usr/bin/env python3
"""The TCP broker as a program: the UDP broker's frames over WebSockets, and a relay on the same port.

    tcp_broker.py --listen 0.0.0.0 --port 6060 --state-dir /var/lib/ntcp --stun 192.0.2.1:3478

Prints `ready ntcp://ADDR:PORT?key=KEY` when it serves. SIGTERM ends it when relayed connections have ended, SIGINT at
once, both with exit code 0; SIGHUP reads the settings and
the certificate again.
"""

from __future__ import annotations

from ntcpsock._address import DEFAULT_BROKER_PORT
from ntcpsock._servers.broker_script import run_broker
from ntcpsock._servers.options import RELAY_LIMITS, RELAY_POLICY, WEB

if __name__ == "__main__":
    run_broker(
        "tcp_broker",
        "ntcpsock's TCP broker, with a relay",
        (*WEB, *RELAY_LIMITS, *(name for name in RELAY_POLICY if name != "ban")),
        udp=False,
        tcp=True,
        port=DEFAULT_BROKER_PORT,
    )
