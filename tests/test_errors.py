"""Every error is the OSError that a plain socket would raise: errno, isinstance, pickling."""

import errno
import pickle
import socket

import pytest

from ntcpsock import _errors
from ntcpsock._report import Report

CASES = [
    (_errors.NameNotFound, socket.EAI_NONAME, socket.gaierror),
    (_errors.NameTaken, errno.EADDRINUSE, OSError),
    (_errors.PeerOffline, errno.ECONNREFUSED, ConnectionRefusedError),
    (_errors.PeerRefused, errno.ECONNREFUSED, ConnectionRefusedError),
    (_errors.TraversalTimeout, errno.ETIMEDOUT, TimeoutError),
    (_errors.TraversalFailed, errno.EHOSTUNREACH, ConnectionError),
    (_errors.BrokerUnreachable, errno.ENETUNREACH, ConnectionError),
    (_errors.IdentityMismatch, errno.ECONNABORTED, ConnectionError),
    (_errors.EncryptionMismatch, errno.EPROTO, ConnectionError),
    (_errors.ConfigurationError, errno.EINVAL, ValueError),
]


@pytest.mark.parametrize(("kind", "code", "base"), CASES)
def test_is_the_like_of_the_plain_error(
    kind: type[_errors.NTCPError], code: int, base: type[Exception]
) -> None:
    error = kind("in words")
    assert isinstance(error, base)
    assert isinstance(error, OSError)
    assert (error.errno, error.strerror, str(error)) == (code, "in words", "in words")


@pytest.mark.parametrize(("kind", "code", "base"), CASES)
def test_survives_pickling_with_its_report(
    kind: type[_errors.NTCPError], code: int, base: type[Exception]
) -> None:
    report = Report("alice:80", "dialer")
    report.begin("resolve", 0.0)
    copy = pickle.loads(pickle.dumps(kind("in words", report=report)))
    assert type(copy) is kind
    assert (copy.errno, str(copy), copy.report) == (code, "in words", report)
