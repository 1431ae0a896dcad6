"""Every stored format, byte for byte: `vectors/` and `cids.json` are written once and never edited.

A change that makes one of these tests fail changes what a CID names: it needs a new major version `v`.
New formats are added by `write_new.py`, which never touches what is there.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.bus.message import read_hint, sign_hint
from dim_pipelines.content.shards import decode_shard, encode_shard
from dim_pipelines.discovery.announcement import read_announcement, write_announcement
from dim_pipelines.discovery.record import make_node_record, read_node_record
from dim_pipelines.discovery.roster_hints import read_roster_hint, write_roster_hint
from dim_pipelines.discovery.roster_record import (
    make_root_record,
    make_roster_record,
    read_root_record,
    read_roster_record,
)
from dim_pipelines.domain.advertisement import AdvertisedDevice, Advertisement, RecordFields, Speed
from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.domain.cid import DAG_CBOR, RAW, Cid
from dim_pipelines.domain.dataset import Column, Dataset, DeadPage, PageEntry, Result, ShardPage
from dim_pipelines.domain.events import (
    Checkpoint,
    RowError,
    Segment,
    SegmentIndex,
    Task,
    TaskDone,
    TaskFailed,
    Usage,
)
from dim_pipelines.domain.format import Format
from dim_pipelines.domain.grant import Grant, Signature, SignedGrant
from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.domain.model import ModelDescription, ModelInput, ModelOutput, Step
from dim_pipelines.domain.roster import (
    Delegation,
    Invite,
    Limits,
    Member,
    Revocation,
    Roster,
    RosterPage,
    SignedRoster,
)
from dim_pipelines.domain.work import ModelUse, Plan, PlanStep, Provenance, Work
from dim_pipelines.identity.authority import issue_grant
from dim_pipelines.identity.keys import public_bytes
from dim_pipelines.identity.roster import RosterView, found_network
from dim_pipelines.identity.signatures import MODEL_DOMAIN, sign
from dim_pipelines.wire.codec import (
    outcome_from_wire,
    outcome_to_wire,
    task_from_wire,
    task_to_wire,
    usage_from_wire,
    usage_to_wire,
)
from dim_pipelines.wire.v1 import node_pb2

VECTORS = Path(__file__).parent / "vectors"
CIDS = Path(__file__).parent / "cids.json"

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
A, B, C = (Cid.of(RAW, name) for name in (b"a", b"b", b"c"))
NODE = Cid.of(DAG_CBOR, b"\xa0")
GRANT = Grant(
    network="local",
    batch="digits-1",
    epoch=3,
    owner="local",
    holder=bytes(range(32)),
    weight=2,
    not_after_ms=1_800_000_000_000,
)
SPEC = BatchSpec.read(
    {
        "name": "digits",
        "models": [
            {"model": str(A), "parameters": {"threshold": 0.5, "labels": ["zero", "eins", "deux é"], "none": None}}
        ],
        "input": {"uri": "digits/", "format": "images", "columns": ["image"], "id_column": "path"},
        "output": {"columns": ["label"], "format": "csv"},
        "shard_rows": 64,
        "batch_rows": 32,
        "requirements": {"device": "cpu", "min_vram": 1, "labels": {"site": "lab"}},
        "numerics": "any",
        "on_row_error": {"policy": "dead_letter", "max_error_fraction": 0.25},
        "priority": -3,
    }
)
MODEL = ModelDescription(
    name="digits-cnn",
    version="1.0",
    engine="torch",
    files={"program": "digits.pt2"},
    inputs=(
        ModelInput(
            name="x",
            datatype="FP32",
            shape=(1, 8, 8),
            column="image",
            preprocess=(
                Step.model_validate({"op": "decode_image", "mode": "L", "size": [8, 8]}),
                Step.model_validate({"op": "scale", "factor": 0.00392156862745098}),
            ),
        ),
    ),
    outputs=(ModelOutput(name="logits", datatype="FP32", shape=(10,)),),
    postprocess=(Step.model_validate({"op": "argmax", "input": "logits", "output": "label"}),),
    max_batch_rows=256,
    licence="Apache-2.0",
)
PAGES = (PageEntry(page=NODE, items=2, rows=96),)

FORMATS: dict[str, Format] = {
    "work": Work(
        models=(ModelUse(model=A, parameters={"b": 1, "a": [True, None, 0.5, "é"], "long key": -1}),),
        pattern="collaborative",
        columns=("image",),
        batch_rows=32,
        numerics="torch-2.15/cpu/FP32",
        dataset=NODE,
    ),
    "result": Result(
        work=NODE,
        columns=(Column(name="path", type="string"), Column(name="label", type="int64")),
        rows=96,
        shards=2,
        pages=PAGES,
        dead=(PageEntry(page=NODE, items=1, rows=1),),
        dead_rows=1,
    ),
    "provenance": Provenance(
        result=NODE,
        batch="digits-1",
        owner="local",
        submission=SPEC.to_plain(),
        source="digits/",
        licences=("Apache-2.0",),
        nodes={"one": 1, "two": 1},
        shards=2,
        resumed_shards=1,
        retries=0,
        seconds=1.25,
        finished_ms=1_800_000_000_000,
        journal=NODE,
        errors=A,
    ),
    "provenance-short": Provenance(
        result=NODE,
        batch="digits-1",
        owner="local",
        submission={},
        source="digits/",
        licences=(),
        nodes={},
        shards=0,
        resumed_shards=0,
        retries=0,
        seconds=0.0,
        finished_ms=0,
    ),
    "dataset": Dataset(
        columns=(Column(name="path", type="string"), Column(name="image", type="binary")),
        rows=96,
        shards=2,
        shard_rows=64,
        pages=PAGES,
    ),
    "dataset-dead": Dataset(
        columns=(Column(name="row", type="int64"), Column(name="x", type="fixed_size_list<item: float>[4]")),
        rows=96,
        shards=2,
        shard_rows=64,
        pages=PAGES,
        dead=(PageEntry(page=NODE, items=1, rows=1),),
        dead_rows=1,
    ),
    "shard-page": ShardPage(shards=[(A, 64), (B, 32), (NODE, 1_000_000)]),
    "dead-page": DeadPage(ids=[0, -1, 2**63 - 1, "a.png", "ß"]),
    "segment": Segment(
        batch="digits-1",
        owner="local",
        epoch=3,
        number=64,
        work=NODE,
        previous=NODE,
        checkpoint=NODE,
        nodes=["one", "two"],
        outcomes=[(0, A, 64, 0, 64, 100_000, 2_000, 12, 1 << 31), (1, B, 32, 1, 32, 50_000, 1_000, 6, 0)],
    ),
    "segment-first": Segment(batch="b", owner="local", epoch=1, number=0, work=NODE, nodes=[], outcomes=[]),
    "segment-index": SegmentIndex(segments=[NODE, NODE]),
    "checkpoint": Checkpoint(count=64, sealed=[NODE], tail=[NODE, NODE]),
    "plan": Plan(
        work=NODE,
        numerics="any",
        steps=(PlanStep(model=A, parameters={"t": 1}, batch_rows=32, columns=("image",), signatures=(NODE,)),),
    ),
    "signature": sign(KEY, MODEL_DOMAIN, A),
    "grant": GRANT,
    "signed-grant": issue_grant(KEY, GRANT),
}


TASK = Task(3, 1, (A, B), 64, 2, 1_800_000_000_000)
USAGE = Usage(64, 100_000, 2_000, 12, 1 << 31)
DONE = TaskDone(3, 1, 2, C, 63, USAGE, (RowError(7, "column 'x': NaN"),))
FAILED = TaskFailed(3, 1, 2, "engine_failed", "the engine process died", True, True)
MESSAGES = {
    "task": task_to_wire(TASK),
    "usage": usage_to_wire(USAGE),
    "outcome-done": outcome_to_wire(DONE),
    "outcome-failed": outcome_to_wire(FAILED),
}
"""What travels between dispatcher and node; protobuf promises that old bytes stay readable, and so do we."""


def shard_tables() -> dict[str, pa.Table]:
    """Tables whose shards are kept: every kind of column."""
    ids = pa.array(range(5), pa.int64())
    floats = np.array([1.5, np.nan, -0.0, np.inf, 0.0], dtype=np.float32)
    return {
        "shard-numbers": pa.table(
            {
                "row": ids,
                "float": pa.array(floats),
                "double": pa.array([1.5, None, -0.0, float("nan"), 5e-324], pa.float64()),
                "half": pa.array(floats.astype(np.float16)),
                "byte": pa.array([0, 1, 255, None, 7], pa.uint8()),
                "bool": pa.array([True, False, None, True, True]),
            }
        ),
        "shard-texts": pa.table(
            {
                "id": pa.array(["a", "b", "c", "d", "ß"]),
                "text": pa.array(["", None, "longer than twelve bytes", "é", "x"]),
                "bytes": pa.array([b"", b"\x00\xff", None, b"x", b"y"], pa.binary()),
                "kind": pa.array(["u", "v", "u", None, "u"]).dictionary_encode(),
            }
        ),
        "shard-lists": pa.table(
            {
                "row": ids,
                "list": pa.array([[1, 2], [], None, [3], [4, None]], pa.list_(pa.int32())),
                "fixed": pa.array([[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]], pa.list_(pa.float32(), 2)),
                "struct": pa.array([{"x": 1}, None, {"x": None}, {"x": 2}, {"x": 3}], pa.struct([("x", pa.int8())])),
            }
        ),
        "shard-empty": pa.table({"row": pa.array([], pa.int64()), "x": pa.array([], pa.string())}),
    }


ROOT = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
MEMBERS = (
    Member(key=public_bytes(KEY), roles=("node",), owner="ana", label="lab-1", admitted_ms=1_800_000_000_000),
    Member(
        key=public_bytes(ROOT),
        roles=("orchestrator", "run_host"),
        owner="operator",
        limits=Limits(max_sessions=4, max_streams=16),
        ca=b"0\x82CA",
        certificate=b"0\x82certificate",
        addresses=("10.0.0.1:7000", "[fd00::1]:7000"),
        doors=("10.0.0.1:7001",),
        admitted_ms=1_800_000_000_000,
    ),
)
REVOKED = Revocation(key=bytes(32), reason="lost", revoked_ms=1_800_000_000_001)


def signed_roster() -> tuple[bytes, tuple[bytes, ...]]:
    """A roster whose certificates are stand-ins: real ones are signed with ECDSA, and differ each time."""
    with patch("dim_pipelines.identity.roster._checked", lambda member: member):
        return found_network(ROOT, KEY, MEMBERS, 1_800_000_000_000)


def network_formats() -> dict[str, Format]:
    signed, _ = signed_roster()
    outer = SignedRoster.decode(signed)
    roster = Roster.decode(outer.roster)
    return {
        "signed-roster": outer,
        "roster": roster,
        "roster-page": RosterPage(members=MEMBERS, revoked=(REVOKED,)),
        "delegation": Delegation.decode(roster.delegation),
        "invite": Invite(
            network=roster.network,
            doors=("10.0.0.1:7001",),
            certificates=(bytes(range(32)),),
            id="0011223344556677",
            secret=bytes(range(32)),
            roles=("node",),
            not_after_ms=1_800_000_000_000,
        ),
    }


FORMATS |= network_formats()
FORMATS["advertisement"] = ADVERTISEMENT = Advertisement(
    label="lab-1",
    version="0.1.0",
    devices=(
        AdvertisedDevice(id="cpu", kind="cpu", name="a processor", memory_bytes=1 << 34),
        AdvertisedDevice(id="cuda:0", kind="cuda", name="a card", memory_bytes=80 << 30),
    ),
    numerics={"torch": "torch-2.15/cpu"},
    models=(A, B),
    speeds=(Speed(model=A, numerics="torch-2.15/cpu/FP32", rows_per_1000_s=5, spread_per_mille=20, samples=30),),
    max_input_bytes=1 << 30,
    max_sessions=4,
    price=7,
    labels={"site": "lab", "é": "ß"},
    hours="22:00-07:00",
    utc_offset_min=-60,
    owners=("ana",),
    licences=("Apache-2.0",),
    swarm="kubo:12D3KooW",
    paused=True,
    draining=False,
)


def records() -> dict[str, bytes]:
    """Records and hints: signed with Ed25519, whose signatures depend on key and bytes alone (RFC 8032)."""
    signed, _ = signed_roster()
    network = ipns_name(public_bytes(ROOT))
    fields = RecordFields(
        network=network,
        boot=bytes(range(16)),
        issued_ms=1_800_000_000_000,
        reach="direct",
        endpoints=("10.0.0.1:7000", "[fd00::1]:7000"),
        attached_to=(network,),
        certificate=b"0\x82certificate",
        advertisement=ADVERTISEMENT.encode(),
    )
    delegation = Roster.decode(SignedRoster.decode(signed).roster).delegation
    return {
        "node-record": make_node_record(KEY, fields, 1_800_000_000_001, 1_800_000_000_002),
        "root-record": make_root_record(ROOT, delegation),
        "roster-record": make_roster_record(KEY, signed, network),
        "hint": sign_hint(KEY, network, "nodes", 1_800_000_000_000, b"body"),
        "roster-hint": write_roster_hint(3, A),
        "announcement": write_announcement(network, b"record"),
    }


def make_vectors() -> dict[str, Callable[[], tuple[str, bytes]]]:
    """Give name → what makes its file's suffix and bytes."""
    made: dict[str, Callable[[], tuple[str, bytes]]] = {}
    for name, value in FORMATS.items():
        made[name] = lambda value=value: ("cbor", value.encode())  # type: ignore[misc]
    for name, table in shard_tables().items():
        made[name] = lambda table=table: ("arrow", encode_shard(table))  # type: ignore[misc]
    for name, message in MESSAGES.items():
        made[name] = lambda message=message: ("pb", message.SerializeToString(deterministic=True))  # type: ignore[misc]
    for name, raw in records().items():
        made[name] = lambda raw=raw: ("pb", raw)  # type: ignore[misc]
    made["batch-spec"] = lambda: ("json", (json.dumps(SPEC.to_plain(), indent=2, sort_keys=True) + "\n").encode())
    made["dim-model"] = lambda: ("json", MODEL.to_json())
    return made


def cid_of(suffix: str, data: bytes) -> Cid:
    return Cid.of(DAG_CBOR if suffix == "cbor" else RAW, data)


NAMES = sorted(make_vectors())


def kept_cids() -> dict[str, str]:
    kept: dict[str, str] = json.loads(CIDS.read_text())
    return kept


def kept_bytes(name: str) -> bytes:
    (path,) = VECTORS.glob(f"{name}.*")
    return path.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_and_the_cid_are_those_of_the_vector(name: str) -> None:
    suffix, data = make_vectors()[name]()
    assert data == kept_bytes(name)
    assert str(cid_of(suffix, data)) == kept_cids()[name]


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_vector_reads_as_the_value_it_was_made_from(name: str) -> None:
    value = FORMATS[name]
    assert type(value).decode(kept_bytes(name)) == value


def test_the_records_are_read_by_name() -> None:
    name, network = ipns_name(public_bytes(KEY)), ipns_name(public_bytes(ROOT))
    record = read_node_record(kept_bytes("node-record"), name)
    assert record.advertisement == ADVERTISEMENT
    assert record.fields.endpoints == ("10.0.0.1:7000", "[fd00::1]:7000")
    assert (record.sequence, record.expires_ms) == (1_800_000_000_001, 1_800_000_180_002)
    assert read_root_record(kept_bytes("root-record"), network, 1_800_000_000_000) == name
    assert read_roster_record(kept_bytes("roster-record"), name, network, 1_800_000_000_000).version == 1
    assert read_hint(kept_bytes("hint"), network, "nodes").body == b"body"
    assert read_roster_hint(kept_bytes("roster-hint")) == (3, A)
    assert read_announcement(kept_bytes("announcement")) == (network, b"record")


@pytest.mark.parametrize("name", sorted(shard_tables()))
def test_a_shard_reads_as_the_rows_it_was_made_from(name: str) -> None:
    rows, table = decode_shard(kept_bytes(name)), shard_tables()[name]
    assert repr(rows.to_pylist()) == repr(table.to_pylist())


def test_texts_read_as_the_values_they_were_made_from() -> None:
    assert BatchSpec.read(json.loads(kept_bytes("batch-spec"))) == SPEC
    assert ModelDescription.from_json(kept_bytes("dim-model")) == MODEL


def test_messages_read_as_the_values_they_were_made_from() -> None:
    assert task_from_wire(node_pb2.Task.FromString(kept_bytes("task"))) == TASK
    assert usage_from_wire(node_pb2.Usage.FromString(kept_bytes("usage"))) == USAGE
    assert outcome_from_wire(node_pb2.Outcome.FromString(kept_bytes("outcome-done"))) == DONE
    assert outcome_from_wire(node_pb2.Outcome.FromString(kept_bytes("outcome-failed"))) == FAILED


def test_there_is_a_vector_for_each_name_and_none_besides() -> None:
    assert sorted(kept_cids()) == NAMES == sorted(path.stem for path in VECTORS.iterdir())


def test_every_stored_format_has_a_vector() -> None:
    def below(kind: type[Any]) -> set[type[Any]]:
        return {kind} | {found for child in kind.__subclasses__() for found in below(child)}

    here = {kind for kind in below(Format) - {Format} if kind.__module__.startswith("dim_pipelines.")}
    assert here <= {type(value) for value in FORMATS.values()}


def test_signatures_and_grants_in_the_vectors_are_valid() -> None:
    signature = Signature.decode(kept_bytes("signature"))
    KEY.public_key().verify(signature.signature, b"dim/model/1\0" + A)
    signed = SignedGrant.decode(kept_bytes("signed-grant"))
    inner = Signature.decode(signed.signature)
    KEY.public_key().verify(inner.signature, b"dim/grant/1\0" + Cid.of(DAG_CBOR, signed.grant))
    assert Grant.decode(signed.grant) == GRANT
    assert inner.key == public_bytes(KEY)


def test_the_roster_in_the_vectors_holds_and_names_its_pages() -> None:
    signed = (VECTORS / "signed-roster.cbor").read_bytes()
    _, pages = signed_roster()
    view = RosterView.open(signed, pages, ipns_name(public_bytes(ROOT)), 1_800_000_000_000)
    assert sorted(member.owner for member in view.members.values()) == ["ana", "operator"]


def test_kubo_gives_the_same_cids(ipfs_binary: Path, tmp_path: Path) -> None:
    environment = {"IPFS_PATH": str(tmp_path / "repo"), "PATH": "/usr/bin:/bin"}
    subprocess.run([ipfs_binary, "init", "--profile=test"], env=environment, check=True, capture_output=True)
    for suffix, codec in (("cbor", "dag-cbor"), ("arrow", "raw"), ("json", "raw"), ("pb", "raw")):
        paths = sorted(VECTORS.glob(f"*.{suffix}"))
        command = [ipfs_binary, "block", "put", f"--cid-codec={codec}", *paths]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        assert done.stdout.split() == [kept_cids()[path.stem] for path in paths]
