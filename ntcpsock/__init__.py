"""Sockets that reach any peer by name, wherever both are.

    import ntcpsock as socket

    s = socket.socket()
    s.connect(("alice.ntcp", 8000))

Every public name of the module `socket` is here, with `socket` and the resolver functions understanding
`.ntcp` names. `install()` and `patched()` put them under programs that import `socket` themselves;
`ntcpsock.trio` is the face for trio programs. Importing this starts nothing and loads neither trio nor
any cryptography: the first `.ntcp` name does.
"""

from __future__ import annotations

import socket as _stdlib
from typing import TYPE_CHECKING, Any

from ntcpsock import _portal
from ntcpsock._errors import (
    BrokerUnreachable,
    ConfigurationError,
    EncryptionMismatch,
    IdentityMismatch,
    NameNotFound,
    NameTaken,
    NTCPError,
    PeerOffline,
    PeerRefused,
    TraversalFailed,
    TraversalTimeout,
)
from ntcpsock._names import gethostbyaddr, gethostbyname, gethostbyname_ex, getnameinfo
from ntcpsock._patch import (
    REPLACEMENTS,
    PatchWarning,
    install,
    patched,
    rebound_functions,
    uninstall,
)
from ntcpsock._resolver import getaddrinfo
from ntcpsock._socket import NTCPSocket
from ntcpsock._socket import NTCPSocket as socket
from ntcpsock._version import __version__

# After ours: what a type checker has seen first stays.
from socket import *  # type: ignore[assignment]  # noqa: F403  # isort: skip

if TYPE_CHECKING:
    from ntcpsock._config import Config
    from ntcpsock._report import PathInfo, PeerInfo, Report
    from ntcpsock._ssl import SSLSocket

# The rest of the module's public face, beyond what its __all__ names; then its functions over our names.
_face = {name: value for name, value in vars(_stdlib).items() if not name.startswith("_")}
_face |= REPLACEMENTS | {name: value for name, value in rebound_functions().items() if name[0] != "_"}
globals().update(_face)
del _face
_GLOBAL_DEFAULT_TIMEOUT = _stdlib._GLOBAL_DEFAULT_TIMEOUT  # type: ignore[attr-defined]  # http.client uses it

__all__ = [
    "socket",
    "getaddrinfo",
    "gethostbyname",
    "gethostbyname_ex",
    "gethostbyaddr",
    "getnameinfo",
    "NTCPSocket",
    "Config",
    "PeerInfo",
    "PathInfo",
    "Report",
    "start",
    "install",
    "uninstall",
    "patched",
    "NTCPError",
    "NameNotFound",
    "NameTaken",
    "PeerOffline",
    "PeerRefused",
    "TraversalTimeout",
    "TraversalFailed",
    "BrokerUnreachable",
    "IdentityMismatch",
    "EncryptionMismatch",
    "ConfigurationError",
    "PatchWarning",
    "SSLSocket",
    "__version__",
]
__all__ += [name for name in _stdlib.__all__ if name not in __all__]


def start(config: Config | None = None, **settings: Any) -> None:
    """Warm the engine of this process; returns when it is registered (if it has a name) and warm.

    config: default: keywords, `NTCP_*` variables and the file that NTCP_CONFIG names. Calling this is
    never needed: the first `.ntcp` name starts the engine too, and then pays for it.

    Raises ConfigurationError (also where a node runs with another configuration), BrokerUnreachable,
    NameTaken, IdentityMismatch, TraversalTimeout.
    """
    from ntcpsock._config import Config

    if config is None:
        config = Config.load(**settings)
    elif settings:
        raise TypeError("give either a Config or settings")
    portal = _portal.get()
    portal.call(portal.engine.start, config)


_LAZY = {
    "Config": "ntcpsock._config",
    "PeerInfo": "ntcpsock._report",
    "PathInfo": "ntcpsock._report",
    "Report": "ntcpsock._report",
    "SSLSocket": "ntcpsock._ssl",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
    elif name == "trio":
        value = import_module("ntcpsock.trio")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value
