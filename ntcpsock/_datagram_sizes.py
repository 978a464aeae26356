"""What a datagram socket says of sizes by its options: never to cut one, and how large one may be.

As with UDP, a datagram that is larger than the path's packets goes in fragments, unless the program has asked by
IP_MTU_DISCOVER (or IPV6_DONTFRAG) for none: then what does not fit is EMSGSIZE, and IP_MTU says what fits. The option
is the kernel's own, and set on the program's own socket, so whoever has the descriptor finds it there.
"""

from __future__ import annotations

import socket as _stdlib
import sys
from typing import Any, Final, Protocol

# linux/in.h and linux/in6.h; the module `socket` of this Python version has no names for most of them.
IP_MTU_DISCOVER: Final = 10
IP_MTU: Final = 14
IPV6_MTU_DISCOVER: Final = 23
IPV6_MTU: Final = 24
IPV6_DONTFRAG: Final = 62
# IP_PMTUDISC_DO and IP_PMTUDISC_PROBE: "don't fragment" is set.
_NEVER_CUT: Final = (2, 3)

#: Bytes of a datagram that every path takes in one packet: 1200 less what QUIC's and our own header need.
SURELY_WHOLE: Final = 1151

#: Options that may change whether one is cut.
CUTTING: Final = frozenset(
    {
        (_stdlib.IPPROTO_IP, IP_MTU_DISCOVER),
        (_stdlib.IPPROTO_IPV6, IPV6_MTU_DISCOVER),
        (_stdlib.IPPROTO_IPV6, IPV6_DONTFRAG),
    }
)
#: Options that ask for the path MTU; what headers of IP and UDP take of it.
PATH_MTU: Final = {
    (_stdlib.IPPROTO_IP, IP_MTU): 20 + 8,
    (_stdlib.IPPROTO_IPV6, IPV6_MTU): 40 + 8,
}


class _HasOptions(Protocol):
    @property
    def family(self) -> Any: ...
    def getsockopt(self, level: int, optname: int, /) -> int: ...


def is_whole(sock: _HasOptions) -> bool:
    """Whether the program wants no datagram of this socket to be cut. Elsewhere than on Linux it cannot say so."""
    if sys.platform != "linux":
        return False
    if sock.getsockopt(_stdlib.IPPROTO_IP, IP_MTU_DISCOVER) in _NEVER_CUT:
        return True
    return sock.family == _stdlib.AF_INET6 and (
        sock.getsockopt(_stdlib.IPPROTO_IPV6, IPV6_MTU_DISCOVER) in _NEVER_CUT
        or bool(sock.getsockopt(_stdlib.IPPROTO_IPV6, IPV6_DONTFRAG))
    )
