"""A table of nodes that have really signed their records, without daemons, network or waiting."""

from __future__ import annotations

from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.database.engine import Database
from dim_pipelines.discovery.node_states import Event, Healthy
from dim_pipelines.discovery.node_table import NodeRow, NodeTable
from dim_pipelines.discovery.record import make_node_record, read_node_record
from dim_pipelines.domain.advertisement import AdvertisedDevice, Advertisement, RecordFields
from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.domain.roster import Member
from dim_pipelines.identity.keys import public_bytes

NETWORK: Final = ipns_name(bytes(32))
"""The network that the records are of."""


class KnownNodes:
    """Nodes with keys of their own in the table of a database, called by the label they first had.

    Attributes:
        table: the table.
    """

    def __init__(self, database: Database, *, owner: str = "ada") -> None:
        """Begin with nobody; `owner`: whom the nodes belong to."""
        self.table = NodeTable(database)
        self._owner = owner
        self._keys: dict[str, Ed25519PrivateKey] = {}

    def name(self, node: str) -> str:
        """Give the IPNS name of a node."""
        return ipns_name(public_bytes(self._keys.setdefault(node, Ed25519PrivateKey.generate())))

    def publish(self, node: str, now_ms: int, **said: Any) -> NodeRow:
        """Have a node's record accepted.

        Args:
            node: whose.
            now_ms: when it was made, Unix milliseconds; also its sequence.
            said: fields of the advertisement that differ from those of a small idle CPU node; `reach` and
                `endpoints` of the record.
        """
        name, reach = self.name(node), said.pop("reach", "direct")
        endpoints = said.pop("endpoints", ("192.0.2.7:4443",) if reach == "direct" else ())
        offered: dict[str, Any] = {
            "label": node,
            "version": "1",
            "devices": (AdvertisedDevice(id="cpu", kind="cpu", name="a small CPU", memory_bytes=8 << 30),),
            "numerics": {"echo": "echo/1"},
            "max_input_bytes": 1 << 20,
            "max_sessions": 2,
        }
        fields = RecordFields(
            network=NETWORK,
            boot=bytes(16),
            issued_ms=now_ms,
            reach=reach,
            endpoints=endpoints,
            attached_to=() if reach == "direct" else (NETWORK,),
            certificate=b"certificate",
            advertisement=Advertisement(**{**offered, **said}).encode(),
        )
        record = read_node_record(make_node_record(self._keys[node], fields, now_ms, now_ms), name)
        member = Member(key=record.key, roles=("node",), owner=self._owner, label=node, admitted_ms=now_ms)
        return self.table.offer(record, member, now_ms)

    def happen(self, node: str, event: Event, now_ms: int) -> NodeRow:
        """Let something befall a node that has published."""
        row = self.table.apply(self.name(node), event, now_ms)
        assert row is not None, f"{node} has not published"
        return row

    def join(self, node: str, now_ms: int, **said: Any) -> NodeRow:
        """Have a node publish and answer: it is ELIGIBLE."""
        self.publish(node, now_ms, **said)
        return self.happen(node, Healthy(now_ms), now_ms)
