"""Who is it that has arrived? Asked by a process that accepts what another process's engine brings.

A pre-forked worker shares its parent's listening socket, and so does a process that was sent one. Arrivals
are announced in the memory of the engine's process; here they are asked for over a Unix socket. Who asks
shows a secret that only heirs and receivers of the listener have; who answers is recognized by the user id
that the kernel reports.
"""

from __future__ import annotations

import os
import pickle
import secrets
import socket
import struct
import sys
from dataclasses import dataclass

from ntcpsock._arrivals import Address, Arrival

TOKEN_LENGTH = 16
# One question or answer: a token and an address; an arrival with its report.
LARGEST_QUESTION = TOKEN_LENGTH + 64
LARGEST_ANSWER = 128 * 1024
# An engine answers within a millisecond. Its process may be stopped by a debugger.
ANSWER_DEADLINE = 5.0


@dataclass(frozen=True, slots=True)
class Inquiry:
    """Where to ask for the arrivals of one listener, and what to show. Picklable; survives fork."""

    address: bytes
    token: bytes
    user: int

    def ask(self, source: Address) -> Arrival | None:
        """What came from `source`; None for a stranger, and when the engine has ended."""
        from ntcpsock._socket import NTCPSocket

        plain = NTCPSocket.__mro__[1]  # whatever the module calls `socket` now
        with plain(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asker:
            asker.settimeout(ANSWER_DEADLINE)
            try:
                asker.connect(self.address)
                if _user_of(asker) != self.user:
                    return None
                asker.send(self.token + f"{source[0]} {source[1]}".encode())
                answer = asker.recv(LARGEST_ANSWER)
            except OSError:
                return None
        # Safe to unpickle: it comes from the very user (checked above) whose engine made the secret.
        arrival: Arrival | None = pickle.loads(answer) if answer else None
        return arrival


def new_inquiry(address: bytes) -> Inquiry:
    return Inquiry(address, secrets.token_bytes(TOKEN_LENGTH), os.geteuid())


def decode_question(question: bytes) -> tuple[bytes, Address] | None:
    """(token, source), or None for what is no question."""
    try:
        host, port = question[TOKEN_LENGTH:].decode("ascii").split(" ")
        return question[:TOKEN_LENGTH], (host, int(port))
    except ValueError:
        return None


def encode_answer(arrival: Arrival | None) -> bytes:
    """An arrival that does not fit goes without its report's details."""
    if arrival is None:
        return b""
    answer = pickle.dumps(arrival)
    if len(answer) > LARGEST_ANSWER:
        report = type(arrival.report)(arrival.report.target, arrival.report.role)
        answer = pickle.dumps(Arrival(arrival.peer, arrival.path, report))
    return answer


def is_available() -> bool:
    """Abstract Unix addresses vanish with their socket and need no directory: Linux has them."""
    return sys.platform == "linux"


def _user_of(connected: socket.socket) -> int:
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    user: int = struct.unpack("3i", credentials)[1]
    return user
