"""Signed permissions: the detached signature and the grant to use nodes for a batch in an epoch."""

from __future__ import annotations

from typing import ClassVar

from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.format import Format


class Signature(Format):
    """A detached Ed25519 signature (RFC 8032) over `domain + NUL + subject`.

    Attributes:
        domain: what the signature means: `dim/model/1`, `dim/grant/1`; one key never signs the same bytes for two ends.
        subject: the CID that is signed.
        key: the signer's public key, 32 bytes.
        signature: 64 bytes.
    """

    kind_name: ClassVar[str] = "dim/signature"
    domain: str
    subject: Cid
    key: bytes
    signature: bytes


class Grant(Format):
    """Permission to use nodes for one batch in one epoch.

    Attributes:
        network: the network's id; `local` before a network exists.
        batch: the batch's id.
        epoch: the fencing number; a node refuses a lower one than it has seen for the batch.
        owner: the member the batch belongs to.
        holder: SHA-256 of the public key of the run worker that may use the grant.
        weight: share among the batches of one owner on a node, 1 or more.
        not_after_ms: Unix time in milliseconds at which the grant ends.
    """

    kind_name: ClassVar[str] = "dim/grant"
    network: str
    batch: str
    epoch: int
    owner: str
    holder: bytes
    weight: int = 1
    not_after_ms: int


class SignedGrant(Format):
    """A grant's bytes with their signature, as they travel in `Open`."""

    kind_name: ClassVar[str] = "dim/signed-grant"
    grant: bytes
    signature: bytes
    """The encoded `Signature` whose subject is the grant's CID."""
