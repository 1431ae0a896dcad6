"""A thousand nodes that exist only as signed records: what verifying and scheduling so many costs."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dim_pipelines.domain.advertisement import AdvertisedDevice, Advertisement, RecordFields, Speed
from dim_pipelines.domain.cid import DAG_PB, Cid
from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.domain.roster import Member

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from dim_pipelines.identity.roster import RosterView

CERTIFICATE_BYTES: Final = 334
"""A self-signed P-256 leaf (measured)."""
MODELS: Final = 8
SPEEDS: Final = 4
NUMERICS: Final = "torch-2.15.0-cpu-avx2"


@dataclass(frozen=True, slots=True)
class PaperNode:
    """A node that exists on paper: its key, its membership, and how to make its records."""

    key: Ed25519PrivateKey
    name: str
    member: Member
    number: int

    def record(self, network: str, sequence: int, now_ms: int) -> bytes:
        """Make a record as large as a usual one: some models, some speeds, a certificate."""
        from dim_pipelines.discovery.record import make_node_record

        fields = RecordFields(
            network=network,
            boot=hashlib.sha256(self.name.encode()).digest()[:16],
            issued_ms=now_ms,
            reach="direct",
            endpoints=(f"10.0.{self.number // 250}.{1 + self.number % 250}:7100",),
            certificate=bytes(CERTIFICATE_BYTES),
            advertisement=self._advertisement().encode(),
        )
        return make_node_record(self.key, fields, sequence, now_ms)

    def _advertisement(self) -> Advertisement:
        held = [model(self.number * 3 + each) for each in range(MODELS)]
        return Advertisement(
            label=f"node-{self.number}",
            version="0.1.0",
            devices=(AdvertisedDevice(id="cpu", kind="cpu", name="a processor", memory_bytes=(8 + self.number) << 30),),
            numerics={"torch": NUMERICS, "echo": "echo-1"},
            models=tuple(held),
            speeds=tuple(
                Speed(
                    model=each,
                    numerics=NUMERICS,
                    rows_per_1000_s=50_000 + 997 * self.number,
                    spread_per_mille=20,
                    samples=40,
                )
                for each in held[:SPEEDS]
            ),
            max_input_bytes=1 << 28,
            max_sessions=8,
            price=self.number % 7,
            labels={"zone": f"z{self.number % 5}"},
        )


def model(number: int) -> Cid:
    """Give the CID of one of fifty models that nodes hold."""
    return Cid.of(DAG_PB, f"model {number % 50}".encode())


def paper_nodes(count: int, now_ms: int) -> list[PaperNode]:
    """Make nodes with keys of their own, each of another owner."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    nodes = []
    for number in range(count):
        key = Ed25519PrivateKey.generate()
        public = key.public_key().public_bytes_raw()
        member = Member(
            key=public, roles=("node",), owner=f"owner-{number}", label=f"node-{number}", admitted_ms=now_ms
        )
        nodes.append(PaperNode(key, ipns_name(public), member, number))
    return nodes


def processor_seconds(work: Callable[[], object]) -> float:
    """Give the processor time that this process spends on `work`: what one core would need."""
    before = time.process_time()
    work()
    return time.process_time() - before


def verified_per_s(count: int, rounds: int) -> float:
    """Count how many records a second one core verifies, reads and judges, each of another member (median)."""
    from dim_pipelines.discovery.judgement import Verdict, judge
    from dim_pipelines.discovery.record import read_node_record

    now_ms = time.time_ns() // 1_000_000
    nodes = paper_nodes(count, now_ms)
    network, view = _network(nodes, now_ms)
    records = [(node.name, node.record(network, now_ms, now_ms)) for node in nodes]

    def verify() -> None:
        for name, raw in records:
            verdict = judge(read_node_record(raw, name), None, network, view, now_ms)
            assert verdict is Verdict.NEW

    return statistics.median(count / processor_seconds(verify) for _ in range(rounds))


def _network(nodes: Sequence[PaperNode], now_ms: int) -> tuple[str, RosterView]:
    """Found a network whose roster admits these nodes, and give its id and the verified roster."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from dim_pipelines.identity.roster import RosterView, found_network

    root = Ed25519PrivateKey.generate()
    signed, pages = found_network(root, Ed25519PrivateKey.generate(), [node.member for node in nodes], now_ms)
    network = ipns_name(root.public_key().public_bytes_raw())
    return network, RosterView.open(signed, pages, network, now_ms)
