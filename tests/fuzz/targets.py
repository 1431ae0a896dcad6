"""What strangers' bytes are decoded by, one target each: it may refuse them with its own error and do nothing else.

Bytes that have to be signed to get in are signed here, so that a fuzzer reaches what lies behind the signature.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from dim_pipelines.bus.message import read_hint, sign_hint
from dim_pipelines.content.store import Block
from dim_pipelines.content.verify import check_blocks
from dim_pipelines.discovery import entry
from dim_pipelines.discovery.announcement import read_announcement, write_announcement
from dim_pipelines.discovery.judgement import Verdict, judge
from dim_pipelines.discovery.record import digest_of, read_node_record, verify_record
from dim_pipelines.discovery.roster_hints import read_roster_hint, write_roster_hint
from dim_pipelines.discovery.roster_record import make_root_record, make_roster_record, read_root_record
from dim_pipelines.domain.advertisement import Advertisement
from dim_pipelines.domain.cid import DAG_CBOR, RAW, Cid
from dim_pipelines.domain.events import Task
from dim_pipelines.domain.ipns import ipns_name, public_of
from dim_pipelines.domain.node import describe_advertised
from dim_pipelines.domain.roster import Invite, Roster, RosterPage, SignedRoster
from dim_pipelines.errors import (
    AccessError,
    ContentError,
    DimError,
    DiscoveryError,
    InputError,
    ProtocolError,
    RecordForged,
)
from dim_pipelines.identity import invites
from dim_pipelines.identity.roster import ROSTER_DOMAIN, RosterView, read_roster
from dim_pipelines.identity.signatures import sign
from dim_pipelines.node.frames import encode_frame, read_frame
from dim_pipelines.testing.node_records import (
    ADMISSION,
    NAME,
    NETWORK,
    NODE,
    NOW,
    ROOT,
    advertisement,
    models,
    node_record,
    roster,
    speeds,
)
from dim_pipelines.wire import codec
from dim_pipelines.wire.chunk import chunk_data, data_chunk
from dim_pipelines.wire.session import DispatcherSession, NodeSession
from dim_pipelines.wire.v1 import blocks_pb2, bus_pb2, node_pb2

ROSTER: Final = roster()
LEAF: Final = Cid.of(RAW, b"leaf")


class _NoLoop:
    """What a reader asks a loop for that never has to wait."""

    def get_debug(self) -> bool:
        return False


@dataclass(frozen=True)
class Target:
    """A decoder: what runs it, what it may raise, and good bytes to begin with."""

    run: Callable[[bytes], object]
    refusals: tuple[type[DimError], ...]
    seeds: tuple[bytes, ...]

    def __call__(self, data: bytes) -> None:
        try:
            self.run(data)
        except self.refusals as error:
            assert "\n" not in error.message, "an error is one line"


def record(raw: bytes) -> None:
    """A record as it comes: nothing that is not the good one's signed bytes gets through."""
    assert read_node_record(raw, NAME).digest in _GOOD, "forged"


def signed_record(data: bytes) -> None:
    """A record whose own key signed anything."""
    raw = entry.write_entry({entry.SIGNATURE_V2: NODE.sign(b"ipns-signature:" + data), entry.DATA: data})
    verify_record(raw, NAME)
    read = read_node_record(raw, NAME)
    assert judge(read, None, NETWORK, ROSTER, NOW) is Verdict.NEW
    describe_advertised(read.name, read.key, "o", read.advertisement)


def signed_root_record(data: bytes) -> None:
    """The record under the network's name, by its own key."""
    raw = entry.write_entry({entry.SIGNATURE_V2: ROOT.sign(b"ipns-signature:" + data), entry.DATA: data})
    read_root_record(raw, NETWORK, NOW)


def advertised(data: bytes) -> None:
    said = Advertisement.decode(data)
    describe_advertised(NAME, b"", "o", said)
    assert Advertisement.decode(said.encode()) == said


def signed_roster(data: bytes) -> None:
    """A roster as it comes."""
    assert read_roster(data, NETWORK)[0] == ROSTER.roster, "forged"


def roster_page(page: bytes) -> None:
    """A page that the admission key signed for."""
    made = Roster.model_validate({**dict(ROSTER.roster), "pages": (Cid.of(DAG_CBOR, page),)}).encode()
    signature = sign(ADMISSION, ROSTER_DOMAIN, Cid.of(DAG_CBOR, made)).encode()
    view = RosterView.open(SignedRoster(roster=made, signature=signature).encode(), [page], NETWORK, NOW)
    view.client_cas()
    assert not view.members.keys() & view.revoked.keys()


def invite(data: bytes) -> None:
    invites.parse_invite(data.decode("latin-1"), NOW)


def summed_invite(data: bytes) -> None:
    """An invite whose checksum holds."""
    raw = data + invites._sum(data)
    read = invites.parse_invite(invites.PREFIX + base64.urlsafe_b64encode(raw).decode().rstrip("="), NOW)
    assert invites.parse_invite(invites.format_invite(read)) == read


def bus_message(raw: bytes) -> None:
    read_hint(raw, "n", "nodes")


def signed_bus_message(raw: bytes) -> None:
    """A message whose sender signed anything."""
    try:
        message = bus_pb2.BusMessage.FromString(raw)
    except DecodeError:
        return
    message.ClearField("signature")
    message.signature = NODE.sign(b"dim/bus/1\0" + message.SerializeToString(deterministic=True))
    read_hint(message.SerializeToString(), "n", "nodes")


def announcement(body: bytes) -> None:
    name, raw = read_announcement(body)
    assert write_announcement(name, raw) == body


def roster_hint(body: bytes) -> None:
    version, cid = read_roster_hint(body)
    assert write_roster_hint(version, cid) == body


def to_node(raw: bytes) -> None:
    """A dispatcher's message to an open session."""
    session = NodeSession(0.0)
    session.receive(node_pb2.DispatcherMessage(open=node_pb2.Open(versions=[1], grant=b"g", plan_cid=LEAF)), 0.0)
    session.opened("n", "any")
    session.grant_credit(4)
    try:
        message = node_pb2.DispatcherMessage.FromString(raw)
    except DecodeError:
        return
    session.receive(message, 1.0)
    assert session.credit >= 0


def to_dispatcher(raw: bytes) -> None:
    """A node's message to a dispatcher that waits for two tasks."""
    session = DispatcherSession(0.0)
    session.open(b"g", LEAF)
    session.receive(node_pb2.NodeMessage(opened=node_pb2.Opened(version=1, node="n", numerics="any")), 0.0)
    session.receive(node_pb2.NodeMessage(credit=node_pb2.Credit(n=2)), 0.0)
    session.send_tasks([Task(shard, 0, (LEAF,), 1, 1, 0) for shard in (0, 1)])
    try:
        message = node_pb2.NodeMessage.FromString(raw)
    except DecodeError:
        return
    session.receive(message, 1.0)
    assert len(session.open_tasks) <= 2


def description(raw: bytes) -> None:
    try:
        message = node_pb2.NodeDescription.FromString(raw)
    except DecodeError:
        return
    codec.description_from_wire(message)


def blocks(raw: bytes) -> None:
    try:
        message = blocks_pb2.Blocks.FromString(raw)
    except DecodeError:
        return
    check_blocks([Block(codec.cid_from_wire(item.cid), item.data) for item in message.blocks])


def frame(raw: bytes) -> None:
    """A frame of an engine process that a daemon reads; one that is cut short ends the connection."""
    reader = asyncio.StreamReader(loop=_NoLoop())
    reader.feed_data(raw)
    reader.feed_eof()
    reading = read_frame(reader, 1 << 20)
    try:
        reading.send(None)
    except StopIteration as done:
        header, payload = done.value
        assert isinstance(header, dict)
        assert len(payload) <= 1 << 20
    except asyncio.IncompleteReadError:
        return
    else:
        raise AssertionError("it waits although everything was said")


def chunk(raw: bytes) -> None:
    data = chunk_data(raw)
    assert data is None or data_chunk(bytes(data)) == raw


def name(raw: bytes) -> None:
    text = raw.decode("latin-1")
    assert ipns_name(public_of(text)) == text.removeprefix("/ipns/")


_RECORD: Final = node_record(said=advertisement(models=models(3), speeds=speeds(2), labels={"site": "lab"}))
_GOOD: Final = (digest_of(node_record()), digest_of(_RECORD))
_INVITE: Final = Invite(
    network=NETWORK,
    doors=("127.0.0.1:7000",),
    certificates=(bytes(32),),
    id="one",
    secret=bytes(32),
    roles=("node",),
    not_after_ms=NOW + 1,
)
_TASK: Final = node_pb2.Task(shard=1, inputs=[LEAF], input_rows=3, attempt=1)
_OUTCOME: Final = node_pb2.Outcome(shard=0, step=0, attempt=1)


def _data(raw: bytes) -> bytes:
    data = entry.read_entry(raw)[entry.DATA]
    assert isinstance(data, bytes)
    return data


TARGETS: Final[dict[str, Target]] = {
    "record": Target(record, (RecordForged,), (node_record(), _RECORD)),
    "signed-record": Target(signed_record, (DiscoveryError, AccessError), (_data(node_record()), _data(_RECORD))),
    "root-record": Target(
        signed_root_record,
        (DiscoveryError,),
        (
            _data(make_root_record(ROOT, ROSTER.roster.delegation)),
            _data(make_roster_record(ADMISSION, ROSTER.signed, NETWORK)),
        ),
    ),
    "advertisement": Target(
        advertised,
        (InputError,),
        (advertisement().encode(), advertisement(models=models(2), speeds=speeds(1)).encode()),
    ),
    "roster": Target(signed_roster, (DiscoveryError,), (ROSTER.signed,)),
    "roster-page": Target(roster_page, (DiscoveryError, InputError), (*ROSTER.pages, RosterPage().encode())),
    "invite": Target(invite, (InputError, AccessError), (invites.format_invite(_INVITE).encode(),)),
    "invite-summed": Target(summed_invite, (InputError, AccessError), (_INVITE.encode(),)),
    "bus": Target(bus_message, (ProtocolError,), (sign_hint(NODE, "n", "nodes", 5, b"body"),)),
    "bus-signed": Target(signed_bus_message, (ProtocolError,), (sign_hint(NODE, "n", "nodes", 5, b"body"),)),
    "announcement": Target(announcement, (InputError,), (write_announcement(NAME, node_record()),)),
    "roster-hint": Target(roster_hint, (InputError,), (write_roster_hint(5, LEAF),)),
    "work-to-node": Target(
        to_node,
        (ProtocolError,),
        (
            node_pb2.DispatcherMessage(tasks=node_pb2.Tasks(tasks=[_TASK])).SerializeToString(),
            node_pb2.DispatcherMessage(cancel=node_pb2.Cancel(shards=[1])).SerializeToString(),
            node_pb2.DispatcherMessage(keep_alive=node_pb2.KeepAlive()).SerializeToString(),
        ),
    ),
    "work-to-dispatcher": Target(
        to_dispatcher,
        (ProtocolError,),
        (
            node_pb2.NodeMessage(outcomes=node_pb2.Outcomes(outcomes=[_OUTCOME])).SerializeToString(),
            node_pb2.NodeMessage(credit=node_pb2.Credit(n=3)).SerializeToString(),
            node_pb2.NodeMessage(refused=node_pb2.Refused(code="node_busy", reason="full")).SerializeToString(),
        ),
    ),
    "description": Target(
        description,
        (ProtocolError,),
        (
            codec.description_to_wire(
                describe_advertised(NAME, bytes(32), "o", advertisement(models=models(2), speeds=speeds(1)))
            ).SerializeToString(),
        ),
    ),
    "blocks": Target(
        blocks,
        (ProtocolError, ContentError, InputError),
        (blocks_pb2.Blocks(blocks=[blocks_pb2.Block(cid=LEAF, data=b"leaf")]).SerializeToString(),),
    ),
    "frame": Target(frame, (ProtocolError,), (b"".join(encode_frame({"op": "run", "n": [1, 2]}, b"payload")),)),
    "chunk": Target(chunk, (ProtocolError,), (data_chunk(b"x"), data_chunk(bytes(20_000)))),
    "name": Target(name, (InputError,), (NAME.encode(), f"/ipns/{NAME}".encode())),
}
