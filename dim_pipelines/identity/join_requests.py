"""A request to join: signed by the member's key, because at a door there is no client certificate. Pure."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dim_pipelines.domain.ipns import public_of
from dim_pipelines.errors import InputError, QuotaExceeded, Unauthenticated
from dim_pipelines.identity.certificates import read_public_key
from dim_pipelines.identity.keys import public_bytes
from dim_pipelines.wire.v1 import orchestrator_pb2

JOIN_DOMAIN: Final = b"dim/join/1\0"
SKEW_MS: Final = 10 * 60_000
"""A request whose clock is this far off is refused."""
NONCE_BYTES: Final = 16
MAX_NONCES: Final = 100_000


def join_request(
    key: Ed25519PrivateKey,
    network: str,
    public_key: bytes,
    *,
    now_ms: int,
    invite: str = "",
    secret: bytes = b"",
    label: str = "",
    server: orchestrator_pb2.ServerEntry | None = None,
) -> orchestrator_pb2.JoinRequest:
    """Make a signed request.

    Args:
        key: the member's key.
        network: the network's id.
        public_key: DER SubjectPublicKeyInfo (P-256) that the client certificates are to be for.
        now_ms: Unix time in milliseconds.
        invite: the invite's id; empty where the key is in the roster already.
        secret: the invite's secret.
        label: the member's name for people.
        server: what the roster should say of an orchestrator's server.
    """
    request = orchestrator_pb2.JoinRequest(
        network=network,
        key=public_bytes(key),
        invite=invite,
        secret=secret,
        public_key=public_key,
        label=label,
        issued_ms=now_ms,
        nonce=os.urandom(NONCE_BYTES),
        server=server,
    )
    request.signature = key.sign(_message(request))
    return request


def verify_join(request: orchestrator_pb2.JoinRequest, now_ms: int) -> None:
    """Check what can be checked of a request by itself: its form, its clock, its signature.

    Whether the network is this one, the invite is good, or the key is a member, and that the nonce is new, is left to
    the caller.

    Raises:
        InputError: malformed.
        Unauthenticated: not signed by its key, or its clock is 10 minutes off or more.
    """
    public_of(request.network)
    if len(request.key) != 32 or len(request.nonce) != NONCE_BYTES:
        raise InputError("a request to join has a key of 32 bytes and a nonce of 16")
    if len(request.label) > 200 or len(request.invite) > 40 or len(request.secret) > 64:
        raise InputError("a request to join has a label of at most 200 characters and an invite")
    if not request.label.isprintable():
        raise InputError("a label is one line of text")
    try:
        Ed25519PublicKey.from_public_bytes(request.key).verify(request.signature, _message(request))
    except (InvalidSignature, ValueError) as error:
        raise Unauthenticated("the request to join is not signed by its key") from error
    off = request.issued_ms - now_ms
    if abs(off) >= SKEW_MS:
        raise Unauthenticated(
            f"the clock of the machine that wants to join is {abs(off) // 1000} s {'ahead' if off > 0 else 'behind'}",
            hint="set its clock, for instance with NTP: timedatectl set-ntp true",
        )
    read_public_key(request.public_key)


class Nonces:
    """Requests to join that were seen: each is taken once. Bounded, for strangers send them."""

    def __init__(self, most: int = MAX_NONCES) -> None:
        """Remember at most so many."""
        self._most = most
        self._seen: OrderedDict[bytes, int] = OrderedDict()

    def take(self, request: orchestrator_pb2.JoinRequest, now_ms: int) -> None:
        """Take a verified request.

        Raises:
            Unauthenticated: it was taken before.
            QuotaExceeded: too many were taken in the last 20 minutes.
        """
        # A request is good from 10 minutes before to 10 minutes after its time.
        while self._seen and next(iter(self._seen.values())) <= now_ms - 2 * SKEW_MS:
            self._seen.popitem(last=False)
        nonce = bytes(request.key + request.nonce)
        if nonce in self._seen:
            raise Unauthenticated("this request to join was made before")
        if len(self._seen) >= self._most:
            raise QuotaExceeded("too many requests to join", hint="try again in 20 minutes")
        self._seen[nonce] = now_ms


def _message(request: orchestrator_pb2.JoinRequest) -> bytes:
    bare = orchestrator_pb2.JoinRequest()
    bare.CopyFrom(request)
    bare.ClearField("signature")
    return JOIN_DOMAIN + bare.SerializeToString(deterministic=True)
