"""TLS 1.3 over a TCP socket, the server's certificate pinned by its fingerprint.

The library's own certificates say nothing but a key: nobody signs them, names and dates are not
looked at. The client knows the SHA-256 of the server's certificate from a sealed card or answer
and compares it before it sends one byte of application data. The client proves itself afterwards,
with the token in its BIND frame.

A non-blocking `SSLSocket` does the records: beside MemoryBIOs it copies less (measured 0.33-0.42
against 0.31 of a blocking SSLSocket through a whole pump; side by side without a pump both reach it).
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import hashlib
import hmac
import os
import secrets
import socket
import ssl
import struct
import sys
import tempfile
from typing import Final

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ntcpsock._address import Endpoint
from ntcpsock._errors import IdentityMismatch

if sys.platform != "win32":
    import fcntl
    import termios

ALPN: Final = "ntcp/1"
# OpenSSL wants an interrupted write repeated with the same bytes, so these are what a full socket
# makes us copy: four records.
WRITE_CHUNK: Final = 65536


class Certificate:
    """This process's TLS identity. fingerprint: SHA-256 of the certificate's DER form, 32 bytes;
    server_context: TLS 1.3 only, ALPN "ntcp/1", no session tickets; certificate_pem, key_pem: both in the form
    in which QUIC loads them."""

    def __init__(
        self, fingerprint: bytes, server_context: ssl.SSLContext, certificate_pem: bytes, key_pem: bytes
    ) -> None:
        self.fingerprint = fingerprint
        self.server_context = server_context
        self.certificate_pem = certificate_pem
        self.key_pem = key_pem


def make_certificate() -> Certificate:
    """A new self-signed ECDSA P-256 certificate, and the context that serves it (some milliseconds)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ntcp")])
    # Fixed dates: nobody looks at them, and the clock of this machine is nobody's business.
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(2000, 1, 1))
        .not_valid_after(datetime.datetime(2100, 1, 1))
        .sign(key, hashes.SHA256())
    )
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    # The ssl module reads keys from files only: the file holds the key encrypted.
    password = secrets.token_bytes(32).hex().encode()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password),
    )
    with tempfile.NamedTemporaryFile(prefix="ntcp-", suffix=".pem") as file:
        file.write(private + certificate.public_bytes(serialization.Encoding.PEM))
        file.flush()
        context.load_cert_chain(file.name, password=password)
    der = certificate.public_bytes(serialization.Encoding.DER)
    plain = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Certificate(
        hashlib.sha256(der).digest(), context, certificate.public_bytes(serialization.Encoding.PEM), plain
    )


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the fingerprint is the check
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols([ALPN])
    return context


@functools.cache
def _client_context() -> ssl.SSLContext:
    return _context(ssl.PROTOCOL_TLS_CLIENT)


async def client_handshake(sock: trio.socket.SocketType, fingerprint: bytes) -> Carrier:
    """TLS as client over the connected `sock`, which belongs to the carrier from here on.

    Raises IdentityMismatch where the server's certificate is not the one of `fingerprint` (nothing
    but the handshake has been sent then); ConnectionError, its cause an ssl.SSLError, or another
    OSError where the handshake fails. The socket is closed after any failure, cancellation included.
    The caller sets the deadline.
    """
    tls = await _handshake(sock, _client_context(), server_side=False)
    try:
        der = tls.getpeercert(binary_form=True) or b""
        if not hmac.compare_digest(hashlib.sha256(der).digest(), fingerprint):
            raise IdentityMismatch("the peer showed another certificate than the one it announced")
        return Carrier(tls)
    except BaseException:
        tls.close()
        raise


async def server_handshake(sock: trio.socket.SocketType, certificate: Certificate) -> Carrier:
    """TLS as server over the connected `sock`; everything else as in `client_handshake`.

    That the client may come in is not known yet: `receive_bind` says who claims to be there.
    """
    tls = await _handshake(sock, certificate.server_context, server_side=True)
    try:
        return Carrier(tls)
    except BaseException:
        tls.close()
        raise


async def _handshake(
    sock: trio.socket.SocketType, context: ssl.SSLContext, *, server_side: bool
) -> ssl.SSLSocket:
    plain = socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())
    tls: ssl.SSLSocket | None = None
    try:
        plain.setblocking(False)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.getpeername()  # wrap_socket leaves the descriptor open where the peer has already gone
        tls = context.wrap_socket(
            plain, server_side=server_side, do_handshake_on_connect=False, suppress_ragged_eofs=False
        )
        await trio.lowlevel.checkpoint()
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(tls)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(tls)
        if tls.selected_alpn_protocol() != ALPN:
            raise ConnectionAbortedError(errno.ECONNABORTED, f"the peer does not speak {ALPN}")
        return tls
    except BaseException as error:
        (tls or plain).close()
        if isinstance(error, ssl.SSLError):
            raise _without_ssl(error) from error
        # A peer that has already gone: the kernel's word, and SSLSocket's.
        if isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno == errno.ENOTCONN):
            raise ConnectionResetError(errno.ECONNRESET, "the peer went away before TLS") from error
        raise


def _without_ssl(error: ssl.SSLError) -> ConnectionError:
    """The like of `error` whose errno is one of sockets: SSLError has OpenSSL's own numbers there."""
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return ConnectionResetError(errno.ECONNRESET, "the connection ended inside TLS")
    return ConnectionAbortedError(errno.ECONNABORTED, f"TLS failed: {error.reason or error}")


class Carrier:
    """TLS over TCP, after the handshake. See `ntcpsock._session.carrier.Carrier` for the tries and waits.

    local, remote: the TCP connection's endpoints; socket: the SSLSocket (for its descriptor and options).
    """

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self.socket = tls
        self.local = Endpoint(*tls.getsockname()[:2])
        self.remote = Endpoint(*tls.getpeername()[:2])
        self._unfinished: bytes | None = None
        self._receive_error: OSError | None = None  # met behind good bytes, or before
        self._noted = 0
        self._closed = False
        self.ended_cleanly = False

    def try_send(self, data: bytes | memoryview) -> int:
        self._check_open()
        if self._unfinished is not None:
            if not self._try_write(self._unfinished):
                return 0
            self._unfinished = None
        taken, length = 0, len(data)
        view = memoryview(data)
        while taken < length:
            chunk = view[taken : taken + WRITE_CHUNK]
            taken += len(chunk)
            if not self._try_write(chunk):
                self._unfinished = bytes(chunk)
                break
        return taken

    def _try_write(self, data: bytes | memoryview) -> bool:
        """All or nothing (OpenSSL's partial writes are off); False: once more, the same bytes."""
        try:
            self.socket.send(data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return False
        except ssl.SSLError as error:
            if self._noted:
                raise OSError(self._noted, os.strerror(self._noted)) from error
            raise _without_ssl(error) from error
        return True

    @property
    def has_unsent(self) -> bool:
        return self._unfinished is not None

    def try_receive_into(self, buffer: memoryview) -> int | None:
        self._check_open()
        filled, length = 0, len(buffer)
        while filled < length and self._receive_error is None:
            try:
                # What recv_into() comes to, with a call less. Typeshed does not know what read() into a buffer returns.
                count: int = self.socket.read(length - filled, buffer[filled:] if filled else buffer)  # type: ignore[assignment]
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return filled or None
            except ssl.SSLEOFError:
                if not self._noted:
                    return filled
                self._receive_error = OSError(self._noted, os.strerror(self._noted))
                break
            except OSError as error:
                self._receive_error = error
                break
            if count == 0:  # close_notify
                self.ended_cleanly = True
                return filled
            filled += count
        if self._receive_error is not None and not filled:
            if isinstance(self._receive_error, ssl.SSLError):
                raise _without_ssl(self._receive_error) from self._receive_error
            raise self._receive_error
        return filled

    def pending(self) -> int:
        """Bytes that are decrypted already: the descriptor does not show them."""
        return self.socket.pending()

    def note_error(self) -> None:
        """Ask the kernel for the errno of a broken connection before OpenSSL does.

        Its functions in the ssl module of Python 3.10 to 3.12.2 tell every failure of a socket as an end of the file.
        """
        with contextlib.suppress(OSError):
            self._noted = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or self._noted

    async def wait_writable(self) -> None:
        self._check_open()
        await trio.lowlevel.wait_writable(self.socket)
        self.note_error()

    async def wait_readable(self) -> None:
        self._check_open()
        await trio.lowlevel.wait_readable(self.socket)
        self.note_error()

    async def send_all(self, data: bytes | memoryview) -> None:
        """Send all of `data`. Cancelled, it may leave the end of `data` unsent: do not go on then."""
        await trio.lowlevel.checkpoint()
        view = memoryview(data)
        while view or self._unfinished is not None:
            view = view[self.try_send(view) :]
            if view or self._unfinished is not None:
                await self.wait_writable()

    async def receive_some(self, max_bytes: int) -> bytes:
        """1 to `max_bytes` bytes, b"" at the end of the carrier. Cancelled, it has read nothing."""
        await trio.lowlevel.checkpoint()
        buffer = bytearray(max_bytes)
        while (count := self.try_receive_into(memoryview(buffer))) is None:
            await self.wait_readable()
        return bytes(buffer[:count])

    def unacknowledged(self) -> int | None:
        """What the peer's kernel has not confirmed yet, in bytes of ciphertext (Linux: SIOCOUTQ)."""
        if self._closed or not sys.platform.startswith("linux"):
            return None
        try:
            answer = fcntl.ioctl(self.socket.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
        except OSError:
            return None
        return int(struct.unpack("i", answer)[0])

    def interrupt(self) -> None:
        if not self._closed:
            # Outside trio, in the pump's thread, nobody waits.
            with contextlib.suppress(RuntimeError):
                trio.lowlevel.notify_closing(self.socket)

    def close(self, *, abort: bool = False) -> None:
        if self._closed:
            return
        self.interrupt()
        self._closed = True
        if abort:
            # The kernel answers the peer with RST instead of FIN.
            with contextlib.suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif self._unfinished is None:
            # close_notify, as far as it goes without waiting. Our own FIN frame is what ends a
            # stream; this is for whoever else reads TLS.
            with contextlib.suppress(OSError, ValueError):
                self.socket.unwrap()
        self.socket.close()

    async def aclose(self) -> None:
        """`close`, with a checkpoint. Bytes that the kernel has are still delivered."""
        self.close()
        await trio.lowlevel.checkpoint()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this carrier was closed")
