"""`ssl.SSLSocket` over `NTCPSocket`: TLS of the application's own, wrapped before or after it connects.

The class of an SSL socket calls the socket methods of its base: `super().connect`, `super().accept`. With our
class between it and the system's, these are ours, and nothing of TLS is touched.
"""

from __future__ import annotations

import ssl

from ntcpsock._socket import NTCPSocket


class SSLSocket(ssl.SSLSocket, NTCPSocket):  # type: ignore[misc]  # the stubs name the parameters differently
    """What `SSLContext.wrap_socket` makes where `context.sslsocket_class = ntcpsock.SSLSocket` was said;
    `install()` says it for all contexts. It connects to `.ntcp` names; `peer`, `path` and `report` are there."""


SSLSocket.__module__ = "ntcpsock"
