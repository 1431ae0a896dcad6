"""The network's nodes as Dagster shows them: two external assets, and what rows of the node table become there.

`nodes` has a partition per node; a node's newest materialization says how it is. `node_pool` is the whole table as of
some minute. Nothing here runs in Dagster: the sensor `ipns_nodes` reports what others have written into the table.
A node that is gone has no partition any more; its last materialization stays in the event log.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import dagster as dg

from dim_pipelines.discovery.node_states import STATES, State
from dim_pipelines.discovery.node_table import NodeRow
from dim_pipelines.orchestrator.dagster_instance import NODE_PARTITIONS

SHOWN_NODES: Final = 50
"""How many nodes a snapshot lists, those that need somebody's attention first: a snapshot is a row of the event log."""
GROUP: Final = "network"
_SHOWN_MODELS: Final = 20
_UNFIT: Final = re.compile(r"[^\w .@:+-]|\.{3,}")
"""What Dagster refuses in a partition's key, or its pages read as a range or a list of keys."""

node_partitions = dg.DynamicPartitionsDefinition(name=NODE_PARTITIONS)

nodes = dg.AssetSpec(
    "nodes",
    partitions_def=node_partitions,
    group_name=GROUP,
    kinds={"ipfs", "grpc"},
    description="The nodes of the network: a partition per node, materialized when it joins or changes. "
    "Kept up to date by the sensor ipns_nodes from the nodes' signed IPNS records and what health checks found.",
)
node_pool = dg.AssetSpec(
    "node_pool",
    deps=[dg.AssetDep(nodes, partition_mapping=dg.AllPartitionMapping())],
    group_name=GROUP,
    kinds={"ipfs", "grpc"},
    description="All nodes of the network in one table, at most once a minute; with the checks quorum and "
    "stale_records. While no node is eligible, batches wait: their pool `batches` has no slots.",
)


def is_available(row: NodeRow) -> bool:
    """Tell whether new work may be given to a node."""
    if row.state != "ELIGIBLE":
        return False
    said = row.description
    return not (said.paused or said.draining)


def partition_key(row: NodeRow) -> str:
    """Give the key of a node's partition: its label, or a form of it that Dagster takes and that is as unique."""
    if not _UNFIT.search(row.label):
        return row.label
    return f"{_UNFIT.sub('_', row.label)}-{row.name[-8:]}"


def describe_node(row: NodeRow) -> dg.AssetMaterialization:
    """Say how a node is: its partition's newest materialization."""
    said, record = row.description, row.record
    metadata: dict[str, dg.MetadataValue] = {
        "dim/state": dg.MetadataValue.text(row.state),
        "dim/reason": dg.MetadataValue.text(row.reason or "-"),
        "dim/since": dg.MetadataValue.timestamp(row.since_ms / 1000),
        "dim/name": dg.MetadataValue.text(row.name),
        "dim/owner": dg.MetadataValue.text(row.owner),
    }
    if record is not None:
        metadata |= {
            "dim/reach": dg.MetadataValue.text(_reach(row)),
            "dim/devices": dg.MetadataValue.table(
                [
                    dg.TableRecord({"device": each.id, "name": each.name, "memory": _gibibytes(each.memory_bytes)})
                    for each in said.devices
                ],
                dg.TableSchema([dg.TableColumn(name) for name in ("device", "name", "memory")]),
            ),
            "dim/engines": dg.MetadataValue.text(", ".join(sorted(said.numerics)) or "none"),
            "dim/numerics": dg.MetadataValue.json(dict(said.numerics)),
            "dim/models": dg.MetadataValue.json([str(cid) for cid in sorted(said.models, key=str)[:_SHOWN_MODELS]]),
            "dim/max_sessions": dg.MetadataValue.int(said.max_sessions),
            "dim/price": dg.MetadataValue.int(said.price),
            "dim/labels": dg.MetadataValue.json(dict(said.labels)),
            "dim/hours": dg.MetadataValue.text(record.advertisement.hours or "always"),
            "dim/paused": dg.MetadataValue.bool(said.paused or said.draining),
            "dim/version": dg.MetadataValue.text(said.version),
        }
    return dg.AssetMaterialization(
        nodes.key,
        partition=partition_key(row),
        description=f"{row.label} is {row.state}" + (f": {row.reason}" if row.reason else ""),
        metadata=metadata,
    )


def describe_pool(rows: Sequence[NodeRow], now_ms: int, limit: int) -> dg.AssetMaterialization:
    """Say how all nodes are.

    Args:
        rows: the whole table.
        now_ms: Unix time in milliseconds.
        limit: how many batches may compute at a time; 0: they wait for a node.
    """
    counts = count_states(rows)
    available = sum(map(is_available, rows))
    memory = sum(device.memory_bytes for row in rows if is_available(row) for device in row.description.devices)
    shown = sorted(
        rows, key=lambda row: (_ATTENTION.index(row.state), row.state == "GONE" and -row.since_ms, row.label)
    )
    metadata: dict[str, dg.MetadataValue] = {
        "dim/available": dg.MetadataValue.int(available),
        **{f"dim/{state.lower()}": dg.MetadataValue.int(counts[state]) for state in STATES},
        "dim/devices": dg.MetadataValue.int(sum(len(row.description.devices) for row in rows if is_available(row))),
        "dim/memory_gib": dg.MetadataValue.float(round(memory / (1 << 30), 1)),
        "dim/batches_at_a_time": dg.MetadataValue.int(limit),
        "dim/nodes": table_of(shown[:SHOWN_NODES], now_ms),
    }
    if len(shown) > SHOWN_NODES:
        metadata["dim/not_listed"] = dg.MetadataValue.int(len(shown) - SHOWN_NODES)
    said = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) or "no nodes"
    return dg.AssetMaterialization(node_pool.key, description=f"{available} available; {said}", metadata=metadata)


def count_states(rows: Iterable[NodeRow]) -> Mapping[State, int]:
    """Count the nodes by state; a state without nodes counts 0."""
    found = Counter(row.state for row in rows)
    return {state: found[state] for state in STATES}


def table_of(rows: Iterable[NodeRow], now_ms: int) -> dg.TableMetadataValue:
    """Give nodes as a table for people."""
    records = []
    for row in rows:
        said = row.description
        records.append(
            dg.TableRecord(
                {
                    "node": row.label,
                    "state": row.state,
                    "reason": row.reason or ("paused" if said.paused else "draining" if said.draining else ""),
                    "for": _span(now_ms - row.since_ms),
                    "reach": _reach(row),
                    "devices": ", ".join(sorted({device.name or device.id for device in said.devices})),
                    "owner": row.owner,
                }
            )
        )
    return dg.MetadataValue.table(records, _TABLE)


def _attention(row: NodeRow) -> tuple[int, int, str]:
    return _ATTENTION.index(row.state), -row.since_ms if row.state == "GONE" else 0, row.label


def _reach(row: NodeRow) -> str:
    if row.record is None:
        return ""
    if row.reach == "attached":
        return "attached" if row.relay is None else f"attached to …{row.relay[-8:]}"
    return f"direct at {', '.join(row.record.fields.endpoints)}"


def _span(ms: int) -> str:
    seconds = max(0, ms) // 1000
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def _gibibytes(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"


_ATTENTION: Final[tuple[State, ...]] = ("SUSPECT", "VERIFIED", "SEEN", "ELIGIBLE", "GONE")
_TABLE: Final = dg.TableSchema(
    [dg.TableColumn(name) for name in ("node", "state", "reason", "for", "reach", "devices", "owner")]
)
