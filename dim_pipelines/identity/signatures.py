"""Detached signatures over CIDs: made and checked here, stored as blocks of their own.

The signed bytes are `domain + NUL + CID`, so that a signature made for one end is worthless for another.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.grant import Signature
from dim_pipelines.errors import Forbidden
from dim_pipelines.identity.keys import public_bytes

MODEL_DOMAIN: Final = "dim/model/1"
GRANT_DOMAIN: Final = "dim/grant/1"


def sign(key: Ed25519PrivateKey, domain: str, subject: Cid) -> Signature:
    """Sign a CID for one end."""
    return Signature(
        domain=domain, subject=subject, key=public_bytes(key), signature=key.sign(_message(domain, subject))
    )


def verify(signature: Signature, domain: str, subject: Cid) -> bytes:
    """Check a signature and give the signer's public key (32 bytes); whether that key is trusted is not asked here.

    Raises:
        Forbidden: it was made for another end or subject, or is not valid.
    """
    if signature.domain != domain or signature.subject != subject:
        raise Forbidden(
            f"the signature is for {signature.domain[:80]!r} {signature.subject}, not for {domain} {subject}"
        )
    try:
        Ed25519PublicKey.from_public_bytes(signature.key).verify(signature.signature, _message(domain, subject))
    except (InvalidSignature, ValueError) as error:
        raise Forbidden(f"the signature over {subject} is not valid") from error
    return signature.key


def _message(domain: str, subject: Cid) -> bytes:
    return domain.encode("ascii") + b"\0" + subject
