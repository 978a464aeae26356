"""TURN servers for tests: coturn, and one without sockets that does what a test tells it to."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import random
import socket
import subprocess
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from stun_support import udp_socket

from ntcpsock._address import Endpoint, TurnAddress, TurnTransport
from ntcpsock._traversal.stun.attributes import (
    AlternateDomain,
    AlternateServer,
    Attribute,
    ErrorCodeAttribute,
    Nonce,
    Realm,
    XorMappedAddress,
)
from ntcpsock._traversal.stun.constants import MessageClass, Method
from ntcpsock._traversal.stun.credentials import (
    PasswordAlgorithm,
    PasswordAlgorithms,
    UserHash,
    long_term_key,
    user_hash,
)
from ntcpsock._traversal.stun.driver import binding_over_udp
from ntcpsock._traversal.stun.message import (
    Message,
    check_integrity,
    check_integrity_sha256,
    encode_message,
)
from ntcpsock._traversal.turn.credentials import TurnServer
from ntcpsock._traversal.turn.machine import TurnMachine
from ntcpsock._traversal.turn.message import (
    ChannelNumber,
    Data,
    Lifetime,
    TurnMethod,
    XorPeerAddress,
    XorRelayedAddress,
    decode_channel_data_untrusted,
    decode_turn_untrusted,
    encode_channel_data,
    is_channel_data,
)

CLIENT, PEER = Endpoint("192.0.2.1", 4000), Endpoint("203.0.113.7", 5000)
RELAYED = Endpoint("198.51.100.1", 50_000)
ALTERNATE = Endpoint("198.51.100.2", 3478)


@dataclass
class FakeServer:
    """A TURN server for one client: units in, units out.

    algorithms: what it offers (RFC 8489 section 14.11), () for a server of RFC 5766; anonymous: whether it wants
    USERHASH. refusals: for each method the codes that its next requests get. mute: it answers nothing. seen: the
    methods of the signed requests that it has accepted or refused, in their order.
    """

    user: str = "u"
    password: str = "p"
    realm: str = "lab"
    algorithms: tuple[tuple[int, bytes], ...] = ()
    anonymous: bool = False
    lifetime: int = 600
    needs_credentials: bool = True
    refusals: dict[int, deque[int]] = field(default_factory=lambda: defaultdict(deque))
    alternate: Endpoint = ALTERNATE
    alternate_domain: str | None = None
    mute: bool = False
    forget_integrity: bool = False
    nonce_number: int = 0
    allocated: bool = False
    permissions: set[str] = field(default_factory=set)
    channels: dict[int, Endpoint] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    requests: list[Message] = field(default_factory=list)
    indications: int = 0
    to_peers: list[tuple[Endpoint, bytes, bool]] = field(default_factory=list)

    @property
    def nonce(self) -> bytes:
        cookie = b""
        if self.algorithms or self.anonymous:
            bits = bool(self.algorithms) | 2 * self.anonymous
            cookie = b"obMatJos2" + base64.b64encode(bits.to_bytes(3))
        return cookie + b"nonce %d" % self.nonce_number

    @property
    def key(self) -> bytes:
        number = self.algorithms[0][0] if self.algorithms else 1
        return long_term_key(self.user, self.realm, self.password, number)

    def handle(self, data: bytes) -> list[bytes]:
        """The answers to a unit of the client's."""
        if is_channel_data(data):
            number, body = decode_channel_data_untrusted(data)
            self.to_peers.append((self.channels[number], body, True))
            return []
        message = decode_turn_untrusted(data)
        if message.message_class == MessageClass.INDICATION:
            self.indications += 1
            peer, body_ = message.get(XorPeerAddress), message.get(Data)
            if (
                message.method == TurnMethod.SEND
                and peer
                and body_
                and peer.endpoint.host in self.permissions
            ):
                self.to_peers.append((peer.endpoint, body_.value, False))
            else:
                assert message.method == Method.BINDING
            return []
        self.requests.append(message)
        if self.mute:
            return []
        code = self._judge(data, message)
        if code is not None:
            return [self._refuse(message, code)]
        self.seen.append(TurnMethod(message.method).name)
        if self.refusals[message.method]:
            return [self._refuse(message, self.refusals[message.method].popleft())]
        return [self._answer(message, MessageClass.SUCCESS_RESPONSE, *self._do(message))]

    def restart(self) -> None:
        self.allocated = False
        self.permissions.clear()
        self.channels.clear()
        self.nonce_number += 1

    def from_peer(self, peer: Endpoint, data: bytes, *, padded: bool = False) -> bytes | None:
        """What the client gets of a datagram of `peer`."""
        if peer.host not in self.permissions:
            return None
        for number, bound in self.channels.items():
            if bound == peer:
                return encode_channel_data(number, data, padded=padded)
        return data_indication(peer, data)

    def _judge(self, data: bytes, message: Message) -> int | None:
        if not self.needs_credentials:
            return None
        nonce = message.get(Nonce)
        if nonce is None:
            return 401
        if nonce.value != self.nonce:
            return 438
        good = check_integrity_sha256(data, self.key) if self.algorithms else check_integrity(data, self.key)
        if self.algorithms:
            assert message.get(PasswordAlgorithms) == PasswordAlgorithms(self.algorithms)
            assert message.get(PasswordAlgorithm) == PasswordAlgorithm(*self.algorithms[0])
        if self.anonymous:
            assert message.get(UserHash) == UserHash(user_hash(self.user, self.realm))
        if not good:
            return 401
        if message.method != TurnMethod.ALLOCATE and not self.allocated:
            return 437
        return None

    def _do(self, message: Message) -> Sequence[Attribute]:
        peer = message.get(XorPeerAddress)
        if message.method == TurnMethod.ALLOCATE:
            self.allocated = True
            return XorRelayedAddress(RELAYED), XorMappedAddress(CLIENT), Lifetime(self.lifetime)
        if message.method == TurnMethod.REFRESH:
            wanted = message.get(Lifetime)
            assert wanted is not None
            if wanted.seconds == 0:
                self.allocated = False
            return (Lifetime(min(wanted.seconds, self.lifetime)),)
        assert peer is not None
        self.permissions.add(peer.endpoint.host)
        if message.method == TurnMethod.CHANNEL_BIND:
            number = message.get(ChannelNumber)
            assert number is not None
            self.channels[number.number] = peer.endpoint
        return ()

    def _refuse(self, message: Message, code: int) -> bytes:
        attributes: list[Attribute] = [ErrorCodeAttribute(code, "so it is")]
        if code in (401, 438):
            attributes += [Realm(self.realm), Nonce(self.nonce)]
            if self.algorithms:
                attributes.append(PasswordAlgorithms(self.algorithms))
        if code == 300:
            attributes.append(AlternateServer(self.alternate))
            if self.alternate_domain:
                attributes.append(AlternateDomain(self.alternate_domain))
        signed = code not in (300, 401, 438)
        return self._answer(message, MessageClass.ERROR_RESPONSE, *attributes, signed=signed)

    def _answer(
        self, message: Message, kind: MessageClass, *attributes: Attribute, signed: bool = True
    ) -> bytes:
        answer = Message(message.method, kind, message.transaction_id, tuple(attributes))
        if not signed or self.forget_integrity or not self.needs_credentials:
            return encode_message(answer)
        if self.algorithms:
            return encode_message(answer, sha256_key=self.key)
        return encode_message(answer, integrity_key=self.key)


def data_indication(peer: Endpoint, data: bytes) -> bytes:
    return encode_message(
        Message(TurnMethod.DATA, MessageClass.INDICATION, bytes(12), (XorPeerAddress(peer), Data(data)))
    )


@dataclass
class Pair:
    """A machine and its server, joined without loss, at a time that the test owns."""

    machine: TurnMachine
    server: FakeServer
    now: float = 0.0
    received: list[tuple[Endpoint, bytes]] = field(default_factory=list)

    def exchange(self) -> None:
        """Until neither has more to say now."""
        while units := self.machine.datagrams_to_send(self.now):
            for unit in units:
                for answer in self.server.handle(unit):
                    self.give(answer)

    def give(self, unit: bytes | None) -> None:
        if unit is not None:
            received = self.machine.handle_unit(unit, self.now)
            if received is not None:
                self.received.append(received)

    def run_until(self, end: float) -> None:
        """Jump from time-out to time-out, as a driver would wake."""
        self.exchange()
        while (due := self.machine.next_timeout()) is not None and due <= end:
            assert due >= self.now - 1e-9, "a time-out in the past would spin"
            stood_still = due <= self.now
            self.now = max(self.now, due)
            self.machine.handle_timeout(self.now)
            self.exchange()
            after = self.machine.next_timeout()
            assert after is None or after > self.now or not stood_still, (
                "handle_timeout did nothing that was due"
            )
        self.now = end

    def events(self) -> list[object]:
        found: list[object] = []
        while (event := self.machine.next_event()) is not None:
            found.append(event)
        return found


# --- coturn ------------------------------------------------------------------------------------


@dataclass
class Coturn:
    """A running one, with what a client needs for it. restart: the same again, without a memory."""

    host: str
    port: int
    tls_port: int
    argv: list[str]
    directory: Path
    process: subprocess.Popen[bytes] | None = None

    def server(
        self,
        transport: TurnTransport = "udp",
        *,
        user: str = "u",
        password: str | None = "p",
        secret: str | None = None,
        ca_file: str | None = None,
        host: str | None = None,
    ) -> TurnServer:
        port = self.tls_port if transport == "tls" else self.port
        return TurnServer(TurnAddress(host or self.host, port, transport), user, password, secret, ca_file)

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.argv, cwd=self.directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    async def ready(self) -> None:
        """Until it listens."""
        while True:
            try:
                stream = await trio.open_tcp_stream(self.host, self.port)
            except OSError:
                await trio.sleep(0.05)
            else:
                await stream.aclose()
                break
        with await udp_socket(self.host) as sock:
            while True:
                with suppress(OSError), trio.move_on_after(0.2):
                    await binding_over_udp(sock, Endpoint(self.host, self.port))
                    return


def free_port(host: str) -> int:
    """A port that nobody has over UDP or TCP, and that the kernel gives to no client meanwhile."""
    while True:
        port = random.randrange(20_000, 30_000)
        try:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                with socket.socket(socket.AF_INET, kind) as sock:
                    sock.bind((host, port))
        except OSError:
            continue
        return port


@contextmanager
def coturn(directory: Path, *options: str, host: str = "127.0.0.1") -> Iterator[Coturn]:
    """A turnserver on loopback: user u, password p, realm lab, unless `options` say `--use-auth-secret`."""
    port, tls_port = free_port(host), free_port(host)
    credentials = [] if "--use-auth-secret" in options else ["--lt-cred-mech", "--user=u:p"]
    argv = [
        "turnserver",
        *("-n", "-L", host, f"--listening-port={port}", f"--tls-listening-port={tls_port}"),
        *(*credentials, "--realm=lab", "--no-dtls", "--no-cli", "--allow-loopback-peers"),
        *("--relay-threads=1", "--log-file=stdout", "--simple-log"),
        f"--pidfile={directory / 'turnserver.pid'}",
        *options,
    ]
    if not any(option.startswith("--cert=") for option in options):
        argv.append("--no-tls")
    server = Coturn(host, port, tls_port, argv, directory)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def write_certificate(directory: Path) -> tuple[str, str, str]:
    """The files of an authority's certificate, and of one that it signed for localhost and 127.0.0.1, and its key."""
    now = datetime.datetime.now(datetime.UTC)
    made: list[tuple[x509.Name, ec.EllipticCurvePrivateKey]] = []
    for number, name in enumerate(("an authority", "localhost")):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer, signer = made[0] if made else (subject, key)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=not number, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
            )
        )
        if number:
            names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        else:
            usage = dict.fromkeys(_KEY_USAGES, False) | {"key_cert_sign": True, "crl_sign": True}
            builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
        certificate = builder.sign(signer, hashes.SHA256())
        made.append((subject, key))
        (directory / f"{number}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (directory / f"{number}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )
    return str(directory / "0.pem"), str(directory / "1.pem"), str(directory / "1.key")


_KEY_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
