"""TLS between machines: servers pinned by their certificate, callers known by theirs.

gRPC has no hook that looks at a certificate in the handshake (https://github.com/grpc/grpc/issues/32635), so a server
is pinned by construction: its own certificate is the only root that the channel trusts. Certificates are P-256, because
gRPC's BoringSSL refuses Ed25519 ones (https://github.com/grpc/grpc/issues/24252).
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import grpc

from dim_pipelines.errors import NodeUnreachable, Unauthenticated
from dim_pipelines.wire.access import Guard
from dim_pipelines.wire.address import Address

FETCH_SECONDS: Final = 5.0
"""How long a server has for its handshake."""


class ServerKeys(Protocol):
    """What a server shows: PEM of its P-256 key and of its certificate."""

    @property
    def certificate_pem(self) -> bytes:
        """The certificate."""
        ...

    @property
    def key_pem(self) -> bytes:
        """Its key."""
        ...


class ClientKeys(Protocol):
    """What a caller shows; the pair changes when the certificate is renewed."""

    def current(self) -> tuple[bytes, bytes]:
        """Give PEM of the key and of the newest certificate."""
        ...


@dataclass(frozen=True, slots=True)
class PinnedPeer:
    """A server and the one certificate that it may show.

    Attributes:
        name: the IPNS name that is the certificate's DNS name.
        certificate: DER.
    """

    name: str
    certificate: bytes


@dataclass(slots=True)
class ServerTls:
    """What a server with TLS shows, and whom it lets in; all three may change while it serves.

    Attributes:
        identity: its key and certificate.
        client_cas: gives DER of the CAs whose client certificates are honoured now.
        guard: decides about a caller once TLS has checked the certificate.
    """

    identity: ServerKeys
    client_cas: Callable[[], Sequence[bytes]]
    guard: Guard


def certificate_hash(certificate: bytes) -> bytes:
    """Give the SHA-256 (32 bytes) of a certificate's DER: what invites pin doors by."""
    return hashlib.sha256(certificate).digest()


def server_credentials(tls: ServerTls, *, door: bool) -> grpc.ServerCredentials:
    """Make a server's credentials; they are asked again for every connection, so that changes hold at once.

    Args:
        tls: what to show and whom to let in.
        door: whether callers show no certificate.
    """
    last: list[Any] = []

    def now() -> tuple[bytes, bytes, tuple[bytes, ...]]:
        identity = tls.identity  # once: it may be replaced meanwhile
        return identity.key_pem, identity.certificate_pem, () if door else tuple(tls.client_cas())

    def configuration(key: bytes, certificate: bytes, cas: tuple[bytes, ...]) -> Any:
        # Without any CA nobody may come in; gRPC wants one, and under the server's own certificate nobody has another.
        roots = None if door else b"".join(map(_pem, cas)) or certificate
        return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=roots)

    def fetch() -> Any:  # called by gRPC's threads before each handshake
        wanted = now()
        if last and last[0] == wanted:
            return None
        last[:] = [wanted]
        return configuration(*wanted)

    last[:] = [now()]
    return grpc.dynamic_ssl_server_credentials(configuration(*last[0]), fetch, require_client_authentication=not door)


def channel_credentials(peer: PinnedPeer, client: tuple[bytes, bytes] | None) -> grpc.ChannelCredentials:
    """Make the credentials of a channel to one pinned server.

    Args:
        peer: the server.
        client: PEM of the caller's key and certificate; none at a door.
    """
    key, certificate = client or (None, None)
    return grpc.ssl_channel_credentials(_pem(peer.certificate), key, certificate)


async def fetch_certificate(address: str, sha256: bytes) -> bytes:
    """Ask a server for its certificate and check that it is the expected one and that the server has its key.

    Args:
        address: `HOST:PORT`, or `unix:PATH`.
        sha256: hash of the expected certificate's DER.

    Returns:
        The certificate's DER.

    Raises:
        ConfigurationError: the address is malformed.
        NodeUnreachable: nobody answers there in 5 s, or not with TLS.
        Unauthenticated: the server shows another certificate.
    """
    where = Address.parse(address, secure=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the hash below is the check
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(FETCH_SECONDS):
            if where.path:
                _, writer = await asyncio.open_unix_connection(where.path, ssl=context, server_hostname="")
            else:
                _, writer = await asyncio.open_connection(where.host, where.port, ssl=context, server_hostname="")
    except TimeoutError as error:
        raise NodeUnreachable(f"{address} does not answer in {FETCH_SECONDS:.0f} s") from error
    except (OSError, ValueError) as error:
        raise NodeUnreachable(f"{address} does not answer with TLS: {error}") from error
    try:
        found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.transport.abort()  # nothing was said: a goodbye would outlast a short-lived loop
    if not found or certificate_hash(found) != sha256:
        raise Unauthenticated(
            f"{address} shows another certificate than the expected one",
            hint="somebody else answers there, or the server has a new certificate: ask for a new invite",
        )
    return bytes(found)


def _pem(der: bytes) -> bytes:
    return ssl.DER_cert_to_PEM_cert(der).encode("ascii")
