"""Records: what is signed is read, and nothing else counts."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.discovery import entry
from dim_pipelines.discovery.names import MAX_RECORD_BYTES
from dim_pipelines.discovery.record import (
    LIFETIME_MS,
    MAX_SEQUENCE,
    digest_of,
    make_node_record,
    name_of,
    read_node_record,
    sign_record,
    verify_record,
)
from dim_pipelines.domain.advertisement import AdvertisedDevice, Advertisement
from dim_pipelines.domain.cid import DAG_CBOR, Cid
from dim_pipelines.domain.format import decode_cbor, encode_cbor
from dim_pipelines.errors import InputError, RecordForged
from dim_pipelines.identity.keys import public_bytes
from dim_pipelines.testing.node_records import NAME, NODE, NOW, advertisement, fields, models, node_record, speeds


def resigned(change: Callable[[dict[str, Any]], None], key: Ed25519PrivateKey = NODE) -> bytes:
    """Give a record whose signed map was changed by its own key."""
    data = decode_cbor(entry.read_entry(node_record())[entry.DATA])  # type: ignore[arg-type]
    change(data)
    raw = encode_cbor(data)
    return entry.write_entry({entry.SIGNATURE_V2: key.sign(b"ipns-signature:" + raw), entry.DATA: raw})


def test_a_nodes_record_is_read_as_it_was_made() -> None:
    raw = node_record(7)
    record = read_node_record(raw, NAME)
    assert record.name == NAME
    assert record.key == public_bytes(NODE)
    assert record.sequence == 7
    assert record.expires_ms == NOW + LIFETIME_MS
    assert record.fields == fields()
    assert record.advertisement == advertisement()
    assert record.raw == raw
    assert record.digest == digest_of(raw)


def test_the_value_names_the_advertisement() -> None:
    record = verify_record(node_record(), f"/ipns/{NAME}")
    assert record.value == f"/ipfs/{Cid.of(DAG_CBOR, advertisement().encode())}"
    assert record.ttl_ns == 10_000_000_000


@given(
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 253_402_300_799_999),
    st.integers(0, (1 << 63) - 1),
    st.text(max_size=99),
)
def test_what_is_signed_is_what_is_verified(sequence: int, ends_ms: int, ttl_ns: int, value: str) -> None:
    record = verify_record(sign_record(NODE, value, sequence, ends_ms, ttl_ns, {"a": 1}), NAME)
    assert (record.value, record.sequence, record.expires_ms, record.ttl_ns) == (value, sequence, ends_ms, ttl_ns)
    assert record.extra == {"a": 1}


@given(st.data())
def test_no_unsigned_field_reaches_a_decision(data: st.DataObject) -> None:
    """Whatever stands beside the signed bytes, a record is read the same or not at all."""
    raw = node_record()
    good = read_node_record(raw, NAME)
    kept = {
        number: value for number, value in entry.read_entry(raw).items() if number in (entry.SIGNATURE_V2, entry.DATA)
    }
    unsigned = data.draw(
        st.dictionaries(
            st.sampled_from([entry.VALUE, entry.SIGNATURE_V1, entry.VALIDITY, entry.PUBLIC_KEY, 10, 4000]),
            st.binary(max_size=50),
        )
    )
    numbers = data.draw(
        st.dictionaries(
            st.sampled_from([entry.VALIDITY_TYPE, entry.SEQUENCE, entry.TTL, 11]), st.integers(0, (1 << 64) - 1)
        )
    )
    changed = entry.write_entry({**unsigned, **numbers, **kept})
    try:
        read = read_node_record(changed, NAME)
    except RecordForged:
        return
    assert (read.sequence, read.expires_ms, read.fields, read.digest) == (
        good.sequence,
        good.expires_ms,
        good.fields,
        good.digest,
    )


def test_every_flipped_bit_is_refused_or_changes_nothing() -> None:
    raw = node_record()
    good = read_node_record(raw, NAME)
    for position, bit in itertools.product(range(0, len(raw), 3), (1, 0x80)):
        changed = bytearray(raw)
        changed[position] ^= bit
        try:
            assert read_node_record(bytes(changed), NAME).digest == good.digest
        except RecordForged:
            continue


def test_every_cut_is_refused() -> None:
    raw = node_record()
    for length in range(len(raw)):
        with pytest.raises(RecordForged):
            read_node_record(raw[:length], NAME)


def test_another_keys_record_is_refused() -> None:
    other = Ed25519PrivateKey.generate()
    with pytest.raises(RecordForged, match="not signed by the key of its name"):
        read_node_record(node_record(key=other), NAME)
    assert read_node_record(node_record(key=other), name_of(other)).name == name_of(other)


def test_the_key_of_the_name_may_stand_in_the_record_and_no_other() -> None:
    for key, good in ((NODE, True), (Ed25519PrivateKey.generate(), False)):
        known = entry.read_entry(node_record())
        raw = entry.write_entry({**known, entry.PUBLIC_KEY: b"\x08\x01\x12\x20" + public_bytes(key)})
        if good:
            assert read_node_record(raw, NAME).name == NAME
        else:
            with pytest.raises(RecordForged, match="another key"):
                read_node_record(raw, NAME)


def test_a_record_over_10_kib_is_refused() -> None:
    raw = node_record()
    padding = MAX_RECORD_BYTES - len(raw)
    assert read_node_record(raw + entry.write_entry({99: b"x" * (padding - 4)}), NAME).name == NAME
    with pytest.raises(RecordForged, match="10240 is the most"):
        read_node_record(raw + entry.write_entry({99: b"x" * padding}), NAME)


def test_models_then_speeds_are_left_out_until_it_fits() -> None:
    said = advertisement(models=models(64), speeds=speeds(32, "n" * 110))
    raw = make_node_record(NODE, fields(said), 1, NOW)
    shown = read_node_record(raw, NAME).advertisement
    assert len(raw) <= MAX_RECORD_BYTES
    assert shown.speeds == said.speeds
    assert shown.models == said.models[: len(shown.models)]
    assert 0 < len(shown.models) < 64
    said = advertisement(models=models(64), speeds=speeds(32, "n" * 300))
    shown = read_node_record(make_node_record(NODE, fields(said), 1, NOW), NAME).advertisement
    assert shown.models == ()
    assert shown.speeds == said.speeds[: len(shown.speeds)]
    assert 0 < len(shown.speeds) < 32


def test_a_record_that_is_too_large_without_them_cannot_be_made() -> None:
    with pytest.raises(InputError, match="10240 is the most"):
        make_node_record(NODE, fields(advertisement(labels={"x": "y" * 11_000})), 1, NOW)


@pytest.mark.parametrize("sequence", [-1, MAX_SEQUENCE + 1])
def test_a_sequence_that_no_column_holds_is_refused(sequence: int) -> None:
    with pytest.raises(InputError):
        make_node_record(NODE, fields(), sequence, NOW)
    if sequence > 0:
        with pytest.raises(RecordForged, match="sequence is out of range"):
            read_node_record(resigned(lambda data: data.update(Sequence=sequence)), NAME)


def _own(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["_dim"].update(changes)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data.pop("_dim"), "not one of a DIM node"),
        (lambda data: data.update(_dim={}), "not one of a DIM node"),
        (lambda data: data.update(_dim=[1]), "not a map"),
        (lambda data: data.update(_dim=None), "not a map"),
        (_own(v=2), "version 2"),
        (_own(v="1"), "version '1'"),
        (_own(network=5), "malformed"),
        (_own(reach="nearby"), "malformed"),
        (_own(endpoints="x"), "malformed"),
        (_own(endpoints=["x"]), "not HOST:PORT"),
        (_own(endpoints=["a b:1"]), "not HOST:PORT"),
        (_own(endpoints=["\x1b[2J:1"]), "not HOST:PORT"),
        (_own(endpoints=["a:1"] * 17), "more than 16 places"),
        *(
            (_own(endpoints=[place]), "no address of one machine")
            for place in (
                "unix:/run/dim.sock:1",
                "unix:1",
                "169.254.169.254:80",
                "[::ffff:169.254.169.254]:80",
                "0.0.0.0:1",
                "[fe80::1%eth0]:1",
                "[::]:1",
                "224.0.0.1:1",
                "a_b:1",
                "a:70000",
            )
        ),
        (_own(attached_to=["a"] * 17), "more than 16 places"),
        (_own(boot=b"x"), "out of bounds"),
        (_own(issued_ms=-1), "out of bounds"),
        (_own(advertisement=b"\xa0"), "dim/advertisement"),
        (_own(advertisement=b""), "malformed"),
        (_own(advertisement=advertisement(label="other").encode()), "not the CID of the advertisement"),
        (lambda data: data.update(Value=b"/ipfs/x"), "not the CID of the advertisement"),
        (lambda data: data.update(Value=b"\xff"), "not text"),
        (lambda data: data.update(Value="text"), "not of its type"),
        (lambda data: data.update(Validity=b"tomorrow"), "no time"),
        (lambda data: data.update(Validity=b"2026-13-45T00:00:00Z"), "no time"),
        (lambda data: data.update(Validity=b"2026-11-23T00:00:00+01:00"), "no time"),
        (lambda data: data.update(Validity=b"2026-11-23T00:00:00.1234567891Z"), "no time"),
        (lambda data: data.update(ValidityType=1), "validity type 1"),
        (lambda data: data.update(ValidityType=False), "out of range"),
        (lambda data: data.update(Sequence=-1), "out of range"),
        (lambda data: data.update(Sequence="1"), "out of range"),
        (lambda data: data.update(TTL=-1), "out of range"),
        (lambda data: data.pop("TTL"), "lacks a field"),
    ],
)
def test_a_signed_record_that_says_something_else_is_refused(
    change: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    with pytest.raises(RecordForged, match=reason):
        read_node_record(resigned(change), NAME)


@pytest.mark.parametrize(
    "changes",
    [
        {"price": -1},
        {"max_sessions": -1},
        {"max_input_bytes": 1 << 63},
        {"utc_offset_min": 2_000},
        {"devices": (AdvertisedDevice(id="cpu", kind="cpu", name="x", memory_bytes=-1),)},
        {"speeds": (speeds(1)[0].model_copy(update={"rows_per_1000_s": -5}),)},
    ],
)
def test_numbers_out_of_bounds_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RecordForged, match="number in the advertisement"):
        read_node_record(make_node_record(NODE, fields(advertisement(**changes)), 1, NOW), NAME)


@pytest.mark.parametrize("data", [b"\xa0", b"\x80", b"\xff", b"\xa1\x01\x02", b"\x81" * 9000, b"not cbor", b"\xf6"])
def test_signed_garbage_is_refused(data: bytes) -> None:
    raw = entry.write_entry({entry.SIGNATURE_V2: NODE.sign(b"ipns-signature:" + data), entry.DATA: data})
    with pytest.raises(RecordForged):
        verify_record(raw, NAME)


def test_a_signature_without_its_domain_is_refused() -> None:
    known = entry.read_entry(node_record())
    data = known[entry.DATA]
    assert isinstance(data, bytes)
    with pytest.raises(RecordForged):
        verify_record(entry.write_entry({**known, entry.SIGNATURE_V2: NODE.sign(data)}), NAME)


@pytest.mark.parametrize(
    "name", ["", "k", "k51", "bafkqaaa", "k51qzi5uqu5d", "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"]
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(InputError):
        verify_record(node_record(), name)


def test_unknown_signed_fields_are_kept() -> None:
    record = read_node_record(resigned(_own(colour="blue")), NAME)
    assert record.fields.model_extra == {"colour": "blue"}
    assert Advertisement.decode(record.fields.advertisement) == record.advertisement


@pytest.mark.parametrize("ends_ms", [-1 << 60, 1 << 60])
def test_a_time_that_no_calendar_has_cannot_be_signed(ends_ms: int) -> None:
    with pytest.raises(InputError):
        sign_record(NODE, "/ipfs/x", 1, ends_ms, 0)


@pytest.mark.parametrize("number", [-1, 1 << 64])
def test_a_number_that_no_field_holds_cannot_be_signed(number: int) -> None:
    with pytest.raises(InputError):
        sign_record(NODE, "/ipfs/x", number, NOW, 0)
    with pytest.raises(InputError):
        sign_record(NODE, "/ipfs/x", 1, NOW, number)
