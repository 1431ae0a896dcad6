"""Grants: who may use nodes for a batch, signed by a key the node trusts.

A node trusts the submitters of its `trusted.yaml`, and where it has joined a network the orchestrators of the roster,
for batches of that network.
"""

from __future__ import annotations

from collections.abc import Container

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.domain.cid import DAG_CBOR, Cid
from dim_pipelines.domain.grant import Grant, Signature, SignedGrant
from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.errors import Forbidden, InputError
from dim_pipelines.identity.keys import format_public_key
from dim_pipelines.identity.roster import RosterView
from dim_pipelines.identity.signatures import GRANT_DOMAIN, sign, verify


def issue_grant(key: Ed25519PrivateKey, grant: Grant) -> SignedGrant:
    """Sign a grant."""
    data = grant.encode()
    return SignedGrant(grant=data, signature=sign(key, GRANT_DOMAIN, Cid.of(DAG_CBOR, data)).encode())


def read_grant(data: bytes, now_ms: int) -> tuple[Grant, bytes]:
    """Check an encoded `SignedGrant`; give the grant and its signer's public key, whom the caller has yet to trust.

    Args:
        data: what `Open` carried.
        now_ms: Unix time in milliseconds.

    Raises:
        Forbidden: malformed, not validly signed, or over.
    """
    try:
        signed = SignedGrant.decode(data)
        grant = Grant.decode(signed.grant)
        signature = Signature.decode(signed.signature)
    except InputError as error:
        raise Forbidden(f"the grant cannot be read: {error.message}") from error
    signer = verify(signature, GRANT_DOMAIN, Cid.of(DAG_CBOR, signed.grant))
    if grant.not_after_ms <= now_ms:
        raise Forbidden(f"the grant for batch {grant.batch} has ended")
    return grant, signer


def verify_grant(data: bytes, trusted: Container[bytes], now_ms: int, roster: RosterView | None = None) -> Grant:
    """Check an encoded `SignedGrant` and give the grant.

    Args:
        data: what `Open` carried.
        trusted: public keys (32 bytes each) whose grants are honoured.
        now_ms: Unix time in milliseconds.
        roster: of the network that the node has joined; its orchestrators' grants are honoured for this network.

    Raises:
        Forbidden: malformed, not validly signed, signed by a stranger or by one who may not, or over.
    """
    grant, signer = read_grant(data, now_ms)
    check_signer(grant, signer, trusted, roster)
    return grant


def check_signer(grant: Grant, signer: bytes, trusted: Container[bytes], roster: RosterView | None = None) -> None:
    """See that the signer of a grant is trusted now; a node asks it again when the roster has changed.

    Args:
        grant: as `read_grant` gave it.
        signer: its signer's public key.
        trusted: public keys whose grants are honoured.
        roster: of the network that the node has joined; for it its orchestrators' grants are honoured, and no others.

    Raises:
        Forbidden: signed by a stranger, or by one who may not.
    """
    of_network = roster is not None and grant.network == roster.network
    if signer in trusted and not of_network:  # what a home trusts by itself rules no batch of the network
        return
    if roster is None or not of_network:
        raise Forbidden(
            f"this node does not trust {format_public_key(signer)} to submit batches",
            hint="on the node: dim node start --trust KEY",
        )
    if "orchestrator" not in roster.member(ipns_name(signer)).roles:
        raise Forbidden(f"{ipns_name(signer)} signs no grants: it is no orchestrator of the network")
