"""The roster under IPNS names: from the network's name alone to a verified roster."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.discovery.memory_names import MemoryNameService
from dim_pipelines.discovery.record import name_of, sign_record
from dim_pipelines.discovery.roster_hints import read_roster_hint, write_roster_hint
from dim_pipelines.discovery.roster_record import (
    fetch_roster,
    make_root_record,
    make_roster_record,
    publish_roster,
    read_root_record,
    read_roster_record,
)
from dim_pipelines.domain.cid import DAG_CBOR, Cid
from dim_pipelines.errors import InputError, NameUnresolved, RecordExpired, RecordForged, RolledBack
from dim_pipelines.identity.roster import RosterView, edit_roster
from dim_pipelines.testing.node_records import ADMISSION, NETWORK, NOW, ROOT, member, roster

VIEW = roster()
SIGNER = name_of(ADMISSION)
OTHER = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
DAYS_31 = 31 * 86_400_000


def edited(view: RosterView = VIEW) -> RosterView:
    signed, pages = edit_roster(view, ADMISSION, admit=[member(OTHER)], now_ms=NOW)
    return RosterView.open(signed, pages, NETWORK, NOW)


async def test_the_networks_name_leads_to_the_newest_roster() -> None:
    names, store = MemoryNameService(clock_ms=lambda: NOW), MemoryContentStore()
    with pytest.raises(NameUnresolved):
        await fetch_roster(NETWORK, names, store, NOW)
    root = make_root_record(ROOT, VIEW.roster.delegation)
    await publish_roster(VIEW, ADMISSION, names, store, root_record=root)
    assert (await fetch_roster(NETWORK, names, store, NOW)).signed == VIEW.signed
    newer = edited()
    await publish_roster(newer, ADMISSION, names, store)
    found = await fetch_roster(NETWORK, names, store, NOW)
    assert found.signed == newer.signed
    assert name_of(OTHER) in found.members
    with pytest.raises(RolledBack):
        await publish_roster(VIEW, ADMISSION, names, store)


def test_another_root_key_delegates_nothing_here() -> None:
    raw = make_root_record(OTHER, VIEW.roster.delegation)
    with pytest.raises(RecordForged, match="not signed"):
        read_root_record(raw, NETWORK, NOW)
    with pytest.raises(RecordForged, match="another network"):
        read_root_record(raw, name_of(OTHER), NOW)


def test_a_delegation_that_has_ended_counts_no_more() -> None:
    raw = make_root_record(ROOT, VIEW.roster.delegation)
    assert read_root_record(raw, NETWORK, NOW) == SIGNER
    with pytest.raises(RecordExpired):
        read_root_record(raw, NETWORK, NOW + DAYS_31)


def test_another_key_cannot_point_to_a_roster() -> None:
    with pytest.raises(InputError, match="another key"):
        make_roster_record(OTHER, VIEW.signed, NETWORK)
    raw = make_roster_record(ADMISSION, VIEW.signed, NETWORK)
    with pytest.raises(RecordForged, match="not signed"):
        read_roster_record(raw, name_of(OTHER), NETWORK, NOW)
    assert read_roster_record(raw, SIGNER, NETWORK, NOW).cid == Cid.of(DAG_CBOR, VIEW.signed)
    with pytest.raises(RecordExpired):
        read_roster_record(raw, SIGNER, NETWORK, NOW + DAYS_31)


@pytest.mark.parametrize(
    "extra",
    [
        None,
        {},
        {"v": 1},
        {"v": 2, "kind": "dim/roster-pointer", "network": NETWORK, "version": 3},
        {"v": 1, "kind": "dim/roster-root", "network": NETWORK, "version": 3},
        {"v": 1, "kind": "dim/roster-pointer", "network": SIGNER, "version": 3},
        {"v": 1, "kind": "dim/roster-pointer", "network": NETWORK, "version": 4},
        {"v": 1, "kind": "dim/roster-pointer", "network": NETWORK, "version": "3"},
        {"v": 1, "kind": "dim/roster-pointer", "network": NETWORK},
    ],
)
def test_a_record_of_another_kind_is_no_pointer(extra: dict[str, object] | None) -> None:
    value = f"/ipfs/{Cid.of(DAG_CBOR, VIEW.signed)}"
    with pytest.raises(RecordForged):
        read_roster_record(sign_record(ADMISSION, value, 3, NOW + 1_000, 0, extra), SIGNER, NETWORK, NOW)
    with pytest.raises(RecordForged):
        read_root_record(sign_record(ROOT, value, 3, NOW + 1_000, 0, extra), NETWORK, NOW)


@pytest.mark.parametrize("delegation", [b"", b"\xa0", 5, "x", None])
def test_a_root_record_without_a_delegation_is_refused(delegation: object) -> None:
    extra = {"v": 1, "kind": "dim/roster-root", "delegation": delegation}
    with pytest.raises(RecordForged):
        read_root_record(sign_record(ROOT, f"/ipns/{SIGNER}", 3, NOW + 1_000, 0, extra), NETWORK, NOW)


async def test_a_pointer_to_another_version_is_refused() -> None:
    names, store = MemoryNameService(clock_ms=lambda: NOW), MemoryContentStore()
    await publish_roster(VIEW, ADMISSION, names, store, root_record=make_root_record(ROOT, VIEW.roster.delegation))
    extra = {"v": 1, "kind": "dim/roster-pointer", "network": NETWORK, "version": 9}
    lie = sign_record(ADMISSION, f"/ipfs/{Cid.of(DAG_CBOR, VIEW.signed)}", 9, NOW + 1_000, 0, extra)
    await names.put(SIGNER, lie)
    with pytest.raises(RecordForged, match="version 9"):
        await fetch_roster(NETWORK, names, store, NOW)


async def test_a_name_that_leads_to_garbage_is_refused() -> None:
    names, store = MemoryNameService(clock_ms=lambda: NOW), MemoryContentStore()
    await names.put(NETWORK, make_root_record(ROOT, VIEW.roster.delegation))
    await names.put(SIGNER, sign_record(ADMISSION, "/ipfs/garbage", 1, NOW + 1_000, 0))
    with pytest.raises(RecordForged):
        await fetch_roster(NETWORK, names, store, NOW)


def test_a_hint_says_which_version_there_is() -> None:
    cid = Cid.of(DAG_CBOR, VIEW.signed)
    assert read_roster_hint(write_roster_hint(7, cid)) == (7, cid)
    for body in (b"", b"x" * 8, write_roster_hint(7, cid) + b"x", write_roster_hint(7, cid)[:-1]):
        with pytest.raises(InputError):
            read_roster_hint(body)
