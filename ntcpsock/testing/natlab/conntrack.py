"""Empty the connection tracking table of the caller's namespace, without the `conntrack` program."""

from __future__ import annotations

import os
import socket
import struct

# linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h
_NETLINK_NETFILTER = 12
_NFNL_SUBSYS_CTNETLINK = 1
_IPCTNL_MSG_CT_DELETE = 2
_NLM_F_REQUEST, _NLM_F_ACK = 1, 4
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
_NFGENMSG = struct.Struct("=BBH")  # family, version, resource id


def flush() -> None:
    """Delete every entry. Raises OSError where the kernel refuses."""
    message_type = _NFNL_SUBSYS_CTNETLINK << 8 | _IPCTNL_MSG_CT_DELETE
    body = _NFGENMSG.pack(socket.AF_INET, 0, 0)
    request = _HEADER.pack(_HEADER.size + len(body), message_type, _NLM_F_REQUEST | _NLM_F_ACK, 1, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
        netlink.send(request)
        answer = netlink.recv(4096)
    (error,) = struct.unpack_from("=i", answer, _HEADER.size)
    if error:
        raise OSError(-error, os.strerror(-error))
