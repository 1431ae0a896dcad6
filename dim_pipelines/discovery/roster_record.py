"""The roster under IPNS names: who may sign it stands under the root key's name, the newest one under the signer's.

The root key is offline, so its record lives as long as the delegation; the admission key's is replaced with each
version. Both are only pointers: what they lead to is verified as any roster is (`identity.roster`). Pure but for the
two functions at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.content.store import Block, ContentStore, Pin
from dim_pipelines.discovery.names import NameService
from dim_pipelines.discovery.record import name_of, sign_record, verify_record
from dim_pipelines.domain.cid import DAG_CBOR, Cid
from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.domain.roster import Delegation
from dim_pipelines.errors import InputError, RecordExpired, RecordForged
from dim_pipelines.identity.roster import RosterView, read_roster

TTL_NS: Final = 60_000_000_000
"""How long a resolver may answer from its cache."""
ROOT_DOMAIN: Final = "dim/roster-root"
POINTER_DOMAIN: Final = "dim/roster-pointer"


@dataclass(frozen=True, slots=True)
class RosterPointer:
    """Which version of the roster is the newest, and the CID of the block that is its `SignedRoster`."""

    version: int
    cid: Cid


def make_root_record(root_key: Ed25519PrivateKey, delegation: bytes) -> bytes:
    """Make the record under the network's name: which key signs the roster, until its delegation ends.

    Args:
        root_key: the network's root key.
        delegation: the encoded `Delegation`.

    Raises:
        InputError: the delegation cannot be read.
    """
    said = Delegation.decode(delegation)
    extra = {"v": 1, "kind": ROOT_DOMAIN, "delegation": delegation}
    value = f"/ipns/{ipns_name(said.key)}"
    return sign_record(root_key, value, said.not_before_ms, said.not_after_ms, TTL_NS, extra)


def read_root_record(raw: bytes, network: str, now_ms: int) -> str:
    """Give the name of the key that signs a network's roster.

    Raises:
        RecordForged: not signed by the root key, or it says something else.
        RecordExpired: the delegation has ended.
    """
    record = verify_record(raw, network)
    try:
        if record.extra.get("v") != 1 or record.extra.get("kind") != ROOT_DOMAIN:
            raise RecordForged("the record under the network's name is not that of a roster's signer")
        delegation = Delegation.decode(record.extra.get("delegation", b""))
    except (InputError, TypeError) as error:
        raise RecordForged("the record under the network's name holds no delegation") from error
    if delegation.network != record.name or len(delegation.key) != 32:
        raise RecordForged("the record under the network's name delegates for another network")
    if min(delegation.not_after_ms, record.expires_ms) <= now_ms:
        raise RecordExpired("the permission to sign rosters has ended", hint="the root key's owner renews it")
    return ipns_name(delegation.key)


def make_roster_record(admission_key: Ed25519PrivateKey, signed: bytes, network: str) -> bytes:
    """Make the record under the signer's name: the newest roster, until its delegation ends.

    Raises:
        RecordForged: `signed` is not a roster of this network.
        InputError: the roster was not signed by this key.
    """
    roster, delegation = read_roster(signed, network)
    if name_of(admission_key) != ipns_name(delegation.key):
        raise InputError("the roster was signed by another key")
    extra = {"v": 1, "kind": POINTER_DOMAIN, "network": network, "version": roster.version}
    value = f"/ipfs/{Cid.of(DAG_CBOR, signed)}"
    return sign_record(admission_key, value, roster.version, delegation.not_after_ms, TTL_NS, extra)


def read_roster_record(raw: bytes, signer: str, network: str, now_ms: int) -> RosterPointer:
    """Give what the record under the signer's name points to.

    Raises:
        RecordForged: not signed by the signer, or it says something else.
        RecordExpired: it has ended.
    """
    record = verify_record(raw, signer)
    version = record.extra.get("version")
    if (
        record.extra.get("v") != 1
        or record.extra.get("kind") != POINTER_DOMAIN
        or record.extra.get("network") != network
    ):
        raise RecordForged("the record under the signer's name is not that of this network's roster")
    if type(version) is not int or version != record.sequence or version < 1:
        raise RecordForged("the roster's version is not the sequence of its record")
    if record.expires_ms <= now_ms:
        raise RecordExpired("the record of the roster has expired")
    try:
        return RosterPointer(version, Cid.parse(record.value))
    except InputError as error:
        raise RecordForged("the roster's record points to no block") from error


async def publish_roster(
    view: RosterView,
    admission_key: Ed25519PrivateKey,
    names: NameService,
    store: ContentStore,
    *,
    root_record: bytes | None = None,
) -> None:
    """Put a roster where its network's name leads: its blocks first, then the records.

    Args:
        view: the roster.
        admission_key: the key that signed it.
        names: the name service.
        store: holds the blocks; pinned with the label `roster/NETWORK`.
        root_record: what `make_root_record` gave, where it is at hand.

    Raises:
        DimError: a block or a record could not be put.
    """
    blocks = [Block(Cid.of(DAG_CBOR, page), page) for page in view.pages]
    head = Block(Cid.of(DAG_CBOR, view.signed), view.signed)
    pin = Pin("local", f"roster/{view.network}", None)
    await store.put([*blocks, head])
    for block in [*blocks, head]:
        await store.pin(block.cid, pin)
    if root_record is not None:
        await names.put(view.network, root_record)
    await names.put(name_of(admission_key), make_roster_record(admission_key, view.signed, view.network))


async def fetch_roster(network: str, names: NameService, store: ContentStore, now_ms: int) -> RosterView:
    """Find the newest roster by the network's name alone, and verify it.

    Raises:
        NameUnresolved: a record cannot be found.
        RecordForged: a record or the roster is not what its name's key signed.
        RecordExpired: it has ended.
        ContentError: a block cannot be had.
    """
    signer = read_root_record(await names.get(network), network, now_ms)
    pointer = read_roster_record(await names.get(signer), signer, network, now_ms)
    signed = await store.get(pointer.cid)
    roster, _ = read_roster(signed, network)
    if roster.version != pointer.version:
        raise RecordForged(f"the record says version {pointer.version}, the roster is {roster.version}")
    pages = [await store.get(cid) for cid in roster.pages]
    return RosterView.open(signed, pages, network, now_ms)
