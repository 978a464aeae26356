"""Which of CPython's test modules are run, and which of them in each run of the test suite."""

from __future__ import annotations

from .outcomes import Module

MODULES = (
    # AF_VSOCK talks to a virtual machine's host, which may never answer: CPython's own test hangs there.
    Module("socket", ("test.test_socket",), excluded=("*VSOCK*",), quick=("plain",)),
    # Datagrams by name in every run; the whole of the module takes minutes.
    Module(
        "udp",
        ("test.test_socket",),
        patterns=tuple(
            f"*.{name}.*"
            for name in (
                "BasicUDPTest",
                "UDPTimeoutTest",
                "SendmsgUDPTest",
                "RecvmsgUDPTest",
                "RecvmsgIntoUDPTest",
            )
        ),
        quick=("named",),
    ),
    Module("socketserver", ("test.test_socketserver",), resources=("network",), quick=("plain", "named")),
    Module("select", ("test.test_select",), quick=("plain",)),
    Module("selectors", ("test.test_selectors",), quick=("named",)),
    Module("httplib", ("test.test_httplib",), quick=("plain", "named")),
    Module("httpservers", ("test.test_httpservers",)),
    Module("ssl", ("test.test_ssl",)),
    Module("ftplib", ("test.test_ftplib",)),
    Module("smtplib", ("test.test_smtplib",)),
    Module("poplib", ("test.test_poplib",)),
    Module("imaplib", ("test.test_imaplib",)),
    Module("xmlrpc", ("test.test_xmlrpc",)),
    Module("urllib2_localnet", ("test.test_urllib2_localnet",)),
    Module("wsgiref", ("test.test_wsgiref",)),
    Module(
        "asyncio",
        tuple(
            f"test.test_asyncio.test_{part}"
            for part in (
                "base_events",
                "buffered_proto",
                "events",
                "selector_events",
                "sendfile",
                "server",
                "sock_lowlevel",
                "ssl",
                "sslproto",
                "streams",
                "unix_events",
            )
        ),
    ),
    Module(
        "multiprocessing",
        (
            "test.test_multiprocessing_fork",
            "test.test_multiprocessing_forkserver",
            "test.test_multiprocessing_spawn",
        ),
        patterns=(
            "*Connection.*",
            "*Connections.*",
            "*Listener*",
            "*TestPoll*",
            "*.TestWait.*",
            "*.OtherTest.*",
        ),
    ),
)
