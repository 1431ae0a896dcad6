"""P-256 certificates: a server's own, which records and the roster pin, and a member's short-lived ones by role.

Ed25519 keys say who somebody is; gRPC's BoringSSL takes no Ed25519 certificates, so TLS has keys of its own. A client
certificate carries exactly one URI, the SPIFFE id of the member in one role
(https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md, section 2).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dim_pipelines.domain.roster import Role
from dim_pipelines.errors import ConfigurationError, InputError, Unauthenticated
from dim_pipelines.identity.files import write_whole
from dim_pipelines.identity.p256 import (
    DER,
    PEM,
    SKEW,
    build_certificate,
    dns_names,
    ends_within,
    fits,
    issued_by,
    load_certificate,
    load_or_create_p256,
    parse_certificate,
    read_key,
    unix_ms,
)
from dim_pipelines.settings import Home
from dim_pipelines.wire.access import Peer

SERVER_DAYS: Final = 365
CA_DAYS: Final = 3650
RENEW_DAYS: Final = 30
"""A server's certificate and a CA's are made anew this long before their end."""
CLIENT_HOURS: Final = 24


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """What a server shows.

    Attributes:
        name: the member's IPNS name, the certificate's one DNS name.
        certificate: DER.
        certificate_pem: the same in PEM.
        key_pem: its P-256 key.
    """

    name: str
    certificate: bytes
    certificate_pem: bytes
    key_pem: bytes


def load_or_create_server(home: Home, name: str) -> ServerIdentity:
    """Give the server certificate of a home, a self-signed leaf for one year.

    It is made when there is none, when it is another name's, and 30 days before its end.

    Raises:
        ConfigurationError: a file cannot be read or written, or holds something else.
    """
    key, key_pem = load_or_create_p256(home.keys / "server.key")
    path = home.network / "server.crt"
    found = load_certificate(path)
    if found is None or not fits(found, key) or dns_names(found) != [name] or ends_within(found, RENEW_DAYS):
        found = build_certificate(key, x509.Name([]), key, x509.Name([]), x509.DNSName(name), days=SERVER_DAYS)
        write_whole(path, found.public_bytes(PEM))
    return ServerIdentity(name, found.public_bytes(DER), found.public_bytes(PEM), key_pem)


def server_name(certificate: bytes) -> str:
    """Give the one DNS name of a server's certificate (DER): the IPNS name of its member.

    Raises:
        InputError: it is no certificate, or names none or several.
    """
    names = dns_names(parse_certificate(certificate))
    if len(names) != 1:
        raise InputError("the server's certificate does not name exactly one member")
    return names[0]


class Ca:
    """An orchestrator's CA: it issues the client certificates that the roster makes others honour.

    Attributes:
        certificate: DER, for the roster.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        """Use `load_or_create_ca`."""
        self._key, self._certificate = key, certificate
        self.certificate = certificate.public_bytes(DER)

    def issue(self, public_key_der: bytes, peer: Peer, now_ms: int, hours: int = CLIENT_HOURS) -> bytes:
        """Issue a client certificate for one member in one role.

        Args:
            public_key_der: DER SubjectPublicKeyInfo (P-256) of the member's client key.
            peer: whom the certificate names.
            now_ms: Unix time in milliseconds.
            hours: how long it holds.

        Returns:
            The certificate's DER.

        Raises:
            InputError: not a P-256 key.
        """
        uri = x509.UniformResourceIdentifier(peer.spiffe_id())
        now = datetime.fromtimestamp(now_ms / 1000, UTC)
        made = build_certificate(
            self._key, self._certificate.subject, read_public_key(public_key_der), x509.Name([]), uri,
            now=now, days=hours / 24,
        )  # fmt: skip
        return made.public_bytes(DER)


def load_or_create_ca(home: Home, network: str, name: str) -> Ca:
    """Give the CA of an orchestrator's home; it is made when there is none, and 30 days before its end.

    Raises:
        ConfigurationError: a file cannot be read or written, or holds something else.
    """
    key, _ = load_or_create_p256(home.keys / "ca.key")
    path = home.network / "ca.crt"
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, network),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    found = load_certificate(path)
    if found is None or not fits(found, key) or found.subject != subject or ends_within(found, RENEW_DAYS):
        found = build_certificate(key, subject, key, subject, None, days=CA_DAYS)
        write_whole(path, found.public_bytes(PEM))
    return Ca(key, found)


class ClientCertificate:
    """A member's certificate in one role, read again from its file when that has changed.

    Attributes:
        not_after_ms: Unix milliseconds at which the newest one ends.
    """

    def __init__(self, key: Path, certificate: Path) -> None:
        """Use `load_client`."""
        self._key, self._path = key, certificate
        self._seen: tuple[int, int] = (0, 0)
        self._pair: tuple[bytes, bytes] = (b"", b"")
        self._not_after_ms = self._not_before_ms = 0
        self.current()

    @property
    def not_after_ms(self) -> int:
        """Unix milliseconds at which the newest one ends."""
        self.current()
        return self._not_after_ms

    @property
    def not_before_ms(self) -> int:
        """Unix milliseconds at which the newest one begins; it was issued 10 minutes later."""
        self.current()
        return self._not_before_ms

    def current(self) -> tuple[bytes, bytes]:
        """Give PEM of the key and of the newest certificate.

        Raises:
            ConfigurationError: a file cannot be read, or the certificate is for another key.
        """
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_ino)
            if seen == self._seen:
                return self._pair
            key_pem = self._key.read_bytes()
        except FileNotFoundError as error:
            raise ConfigurationError(
                f"there is no client certificate {self._path.name} in this home",
                hint="join a network in this role: dim network join INVITE",
            ) from error
        except OSError as error:
            raise ConfigurationError(f"cannot read the client certificate: {error}") from error
        found = load_certificate(self._path)
        if found is None or not fits(found, read_key(self._key, key_pem)):
            raise ConfigurationError(
                f"{self._path} is not for the key {self._key}", hint="renew it: dim network join INVITE"
            )
        self._pair = (key_pem, found.public_bytes(PEM))
        self._not_before_ms, self._not_after_ms = (
            unix_ms(found.not_valid_before_utc),
            unix_ms(found.not_valid_after_utc),
        )
        self._seen = seen
        return self._pair


def load_client(home: Home, role: Role) -> ClientCertificate:
    """Give the client certificate of a home in one role.

    Raises:
        ConfigurationError: the home has none in this role.
    """
    return ClientCertificate(home.keys / "client.key", _client_path(home, role))


def client_public_key(home: Home) -> bytes:
    """Give DER SubjectPublicKeyInfo of the home's client key, which is made when there is none.

    Raises:
        ConfigurationError: the file cannot be read or written, or is no P-256 key.
    """
    key, _ = load_or_create_p256(home.keys / "client.key")
    return key.public_key().public_bytes(DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def store_client(home: Home, role: Role, certificate: bytes) -> None:
    """Keep a client certificate (DER); channels that show the one before take it for their next RPC.

    Raises:
        InputError: it is no certificate, or is not for this home's client key.
        ConfigurationError: it cannot be written.
    """
    parsed = parse_certificate(certificate)
    key, _ = load_or_create_p256(home.keys / "client.key")
    if not fits(parsed, key):
        raise InputError("the client certificate is for another key")
    write_whole(_client_path(home, role), parsed.public_bytes(PEM))


def read_public_key(public_key_der: bytes) -> ec.EllipticCurvePublicKey:
    """Read DER SubjectPublicKeyInfo.

    Raises:
        InputError: not a P-256 key.
    """
    try:
        key = serialization.load_der_public_key(public_key_der)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError("not the public key of a client certificate") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InputError("the key of a client certificate is P-256")
    return key


def check_client(certificate: bytes, peer: Peer, cas: list[bytes]) -> None:
    """Check that a client certificate (DER) names a member, exactly, and is from one of the CAs (DER).

    Raises:
        Unauthenticated: it does not, or is not.
    """
    try:
        parsed = parse_certificate(certificate)
        names = list(parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (InputError, ValueError, x509.ExtensionNotFound) as error:
        raise Unauthenticated("the client certificate cannot be read") from error
    if names != [x509.UniformResourceIdentifier(peer.spiffe_id())]:
        raise Unauthenticated(f"the client certificate is not that of {peer.spiffe_id()}")
    if not any(issued_by(parsed, parse_certificate(ca)) for ca in cas):
        raise Unauthenticated("the client certificate is from a CA that is not in the roster")


@functools.lru_cache(maxsize=1024)
def key_identifier(ca: bytes) -> bytes:
    """Check a CA of the roster (DER), and give the key identifier by which certificates name it.

    Every server reads all of the roster's CAs at once, so that one which TLS cannot read would shut out the others; and
    by the identifier the guard tells them apart, so that it is its key's own (RFC 5280, 4.2.1.2, method 1).

    Raises:
        InputError: it is no CA certificate of a P-256 key, signed by itself.
    """
    parsed = parse_certificate(ca)
    try:
        key = parsed.public_key()
        is_ca = parsed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        identifier = parsed.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except (ValueError, UnsupportedAlgorithm, x509.ExtensionNotFound) as error:
        raise InputError("a CA's certificate cannot be read, or has no key identifier") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InputError("the key of a CA is P-256")
    if not is_ca or not issued_by(parsed, parsed):
        raise InputError("not the certificate of a CA that has signed it itself")
    if identifier != x509.SubjectKeyIdentifier.from_public_key(key).digest:
        raise InputError("a CA's key identifier is not that of its key")
    return identifier


def _client_path(home: Home, role: Role) -> Path:
    return home.network / f"client-{role}.crt"


__all__ = [
    "SKEW",
    "Ca",
    "ClientCertificate",
    "ServerIdentity",
    "check_client",
    "client_public_key",
    "key_identifier",
    "load_client",
    "load_or_create_ca",
    "load_or_create_server",
    "read_public_key",
    "server_name",
    "store_client",
]
