"""The certificate and the key of a server's TLS port, in PEM files that somebody renews now and then."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

from ntcpsock._errors import ConfigurationError


class CertificateFiles:
    """What new connections are served with is `context`; those that are open keep theirs."""

    def __init__(self, certificate: Path, key: Path | None = None) -> None:
        """key: None means in the same file. Raises ConfigurationError."""
        self._certificate = certificate
        self._key = key
        self.context = self._load()

    def reload(self) -> None:
        """Read both again. Raises ConfigurationError, and what was read before stays in use."""
        self.context = self._load()

    def prepare(self) -> Callable[[], None]:
        """Read both, and return what puts them in force. Raises ConfigurationError."""
        fresh = self._load()

        def commit() -> None:
            self.context = fresh

        return commit

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # Nobody comes back for another request, and a ticket costs each handshake two records.
        context.num_tickets = 0
        # Each direction ends by TCP's own end, and the other one goes on: see `tls_stream.py`. OpenSSL 1 did so.
        context.options |= getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
        context.set_alpn_protocols(["http/1.1"])
        try:
            # An encrypted key would be asked for on the terminal.
            context.load_cert_chain(self._certificate, self._key, password=_no_password)
        except (OSError, ValueError) as error:  # SSLError is an OSError
            files = " and ".join(str(path) for path in (self._certificate, self._key) if path is not None)
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise ConfigurationError(f"certificate {files}: {reason}") from error
        return context


def certificate_files(certificate: Path | None, key: Path | None) -> CertificateFiles | None:
    """`--certificate` and `--key`; None without. Raises ConfigurationError."""
    if certificate is None:
        if key is not None:
            raise ConfigurationError("a key without a certificate: give both")
        return None
    return CertificateFiles(certificate, key)


def _no_password() -> str:
    raise ValueError("the key is encrypted")
