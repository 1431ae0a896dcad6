"""`dim nodes`: the nodes that this home's batches may use, and why a batch would, or would not, use each of them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dim_pipelines.cli.console import DebugFlag, Exit, JsonFlag, Screen
from dim_pipelines.cli.local import OWNER, IpfsOption, PublicFlag, content_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dim_pipelines.content.store import ContentStore
    from dim_pipelines.discovery.node_table import NodeRow, NodeTable
    from dim_pipelines.discovery.reputation_table import ReputationTable
    from dim_pipelines.dispatch.node_pool import PoolNode
    from dim_pipelines.domain.batch import BatchSpec
    from dim_pipelines.domain.node import NodeDescription
    from dim_pipelines.identity.membership import Membership
    from dim_pipelines.scheduling.ranking import Explained
    from dim_pipelines.settings import Home
    from dim_pipelines.wire.v1.orchestrator_pb2 import NodeState

app = typer.Typer(help="Nodes that batches may use: list them, and explain why a batch would use which.")

AddressesOption = Annotated[
    str,
    typer.Option(
        "--nodes",
        metavar="ADDR,ADDR",
        envvar="DIM_NODES",
        show_default="those of the network, else of this home",
        help="Look at the nodes at these addresses instead.",
    ),
]
_SECOND_MS: Final = 1000


@app.callback(invoke_without_command=True)
def nodes(
    context: typer.Context,
    addresses: AddressesOption = "",
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """List the nodes that this home's batches may use, with their state and its reason.

    A home that runs no batches for its network (a node's, say) asks an orchestrator which nodes the network has.
    """
    if context.invoked_subcommand is not None:
        return Exit.DONE
    return asyncio.run(_list(_split(addresses), Screen(as_json, debug)))


async def _list(addresses: list[str], screen: Screen) -> int:
    from dim_pipelines.dispatch.discovered_nodes import DiscoveredNodes
    from dim_pipelines.dispatch.open_pool import open_pool
    from dim_pipelines.identity.membership import Membership
    from dim_pipelines.settings import Home

    home = Home.at()
    records: list[dict[str, Any]]
    membership = None if addresses else await asyncio.to_thread(Membership.load, home)
    if membership is not None and "run_host" not in membership.roles:
        records = await _ask_network(membership)
        _show(screen, membership.network, records)
        return Exit.DONE
    pool = await open_pool(home, addresses)
    try:
        looked = await pool.look()
    finally:
        await pool.close()
    if isinstance(pool, DiscoveredNodes):
        records = await asyncio.to_thread(_discovered_records, home, looked)
    else:
        records = [_record(each) for each in looked]
    _show(screen, pool.network, records)
    if not records:
        joining = "dim network invite, and on each machine: dim network join INVITE && dim node start"
        screen.say(f"no node is known yet; next: {joining if pool.grows else 'dim node start, or dim up'}")
    return Exit.DONE


def _show(screen: Screen, network: str, records: Sequence[dict[str, Any]]) -> None:
    columns = ["NAME", "STATE", "SINCE", "REACH", "OWNER", "DEVICES", "REASON"]
    rows = [
        [
            each["name"],
            each["state"],
            each.get("since", ""),
            each.get("reach", ""),
            each.get("owner", ""),
            ", ".join(device["id"] for device in each.get("devices", [])),
            each["reason"] or ("paused by its owner, or outside its hours" if each.get("paused") else ""),
        ]
        for each in records
    ]
    screen.table(columns, rows, {"network": network, "nodes": list(records)})


async def _ask_network(membership: Membership) -> list[dict[str, Any]]:
    """Give the nodes of a network as one of its orchestrators knows them.

    Raises:
        NodeUnreachable: none answers.
        DimError: what it said: this home is no member any more, for example.
    """
    from dim_pipelines.errors import NodeUnreachable
    from dim_pipelines.node.contacts import Contacts
    from dim_pipelines.wire.v1.orchestrator_pb2 import ListNodesRequest

    contacts = Contacts(membership.orchestrators, lambda: membership.client(membership.roles[0]))
    try:
        reply = await contacts.ask_one(lambda stub: stub.ListNodes(ListNodesRequest()))
    except NodeUnreachable as error:
        hint = "dim orchestrator list shows them; dim node status tells of the node here"
        raise NodeUnreachable(f"no orchestrator of the network answers: {error.message}", hint=hint) from error
    finally:
        await contacts.close()
    return sorted((_told(each) for each in reply.nodes), key=lambda each: str(each["name"]))


def _told(node: NodeState) -> dict[str, Any]:
    """Describe a node from what an orchestrator says; what it offers is in its own signed record."""
    from dim_pipelines.discovery.record import read_node_record
    from dim_pipelines.domain.node import describe_advertised

    said: dict[str, Any] = {}
    if node.record:
        record = read_node_record(node.record, node.name)
        said = _described(describe_advertised(node.name, record.key, node.owner, record.advertisement))
    return said | {
        "node": node.name,
        "name": node.label,
        "state": node.state,
        "reason": node.reason,
        "owner": node.owner,
        "since_ms": node.since_ms,
        "since": _ago(node.since_ms),
        "reach": node.reach,
    }


@app.command("explain")
def explain(
    what: Annotated[str, typer.Argument(metavar="SPEC.yaml|BATCH", help="A spec file, or the id of a batch.")],
    addresses: AddressesOption = "",
    ipfs: IpfsOption = "",
    public: PublicFlag = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Say of each node whether a batch could use it now, in which order, and every reason why not."""
    return asyncio.run(_explain(what, _split(addresses), ipfs, public, Screen(as_json, debug)))


async def _explain(what: str, addresses: list[str], ipfs: str, public: bool, screen: Screen) -> int:
    from dim_pipelines.content.models import find_model
    from dim_pipelines.dispatch.explain import explain as explain_nodes
    from dim_pipelines.dispatch.explain import plain
    from dim_pipelines.dispatch.open_pool import open_pool, read_weights
    from dim_pipelines.settings import Home

    home = Home.at()
    weights = read_weights(home)
    async with content_store(home, ipfs, public=public) as store:
        spec, numerics = await _find_spec(what, home, store, screen)
        models = [await find_model(use.model, store, OWNER) for use in spec.models]
        pool = await open_pool(home, addresses)
        try:
            explained = await explain_nodes(
                pool, spec, models, owner=OWNER, numerics=numerics, swarm=store.swarm, weights=weights
            )
        finally:
            await pool.close()
    parts = list(dict.fromkeys(part for each in explained for part in each.parts))
    rows = [_row(each, parts) for each in explained]
    columns = ["NODE", "STATE", "SCORE", *(part.upper() for part in parts), "WHY NOT"]
    record = {"batch": spec.name, "nodes": [plain(each) for each in explained]}
    screen.table(columns, rows, record)
    able = sum(each.feasible for each in explained)
    screen.say(f"{able} of {len(explained)} nodes can take this batch now")
    return Exit.DONE


async def _find_spec(what: str, home: Home, store: ContentStore, screen: Screen) -> tuple[BatchSpec, str | None]:
    """Give the spec of a file or of a batch, and the numerics class that the batch is bound to.

    Raises:
        InputError: there is neither such a file nor such a batch.
    """
    from dim_pipelines.cli.spec import publish_models, read_spec
    from dim_pipelines.database.engine import open_database
    from dim_pipelines.domain.batch import BatchSpec
    from dim_pipelines.orchestrator.batches import Batches

    path = Path(what)
    if _is_file(path):
        spec = BatchSpec.read(read_spec(path))
        return await publish_models(spec, home, store, screen), None
    database = await asyncio.to_thread(open_database, home.database_url)
    row = await asyncio.to_thread(Batches(database).get, what, owner=OWNER)
    return row.spec, row.numerics


def _is_file(path: Path) -> bool:
    """Tell whether a file is meant: no batch's id ends so."""
    return path.suffix in (".yaml", ".yml", ".json") or path.is_file()


def _row(explained: Explained, parts: Sequence[str]) -> list[str]:
    shown = [f"{explained.parts[part]:.2f}" if part in explained.parts else "" for part in parts]
    score = "" if explained.score is None else f"{explained.score:.3f}"
    return [explained.name, explained.state, score, *shown, "; ".join(explained.reasons)]


def _discovered_records(home: Home, looked: Sequence[PoolNode]) -> list[dict[str, Any]]:
    from dim_pipelines.database.engine import open_database
    from dim_pipelines.discovery.node_table import NodeTable
    from dim_pipelines.discovery.reputation_table import ReputationTable

    database = open_database(home.database_url)
    table, reputations = NodeTable(database), ReputationTable(database)
    by_name = {row.name: row for row in table.rows()}
    records = [
        _record(each) | (_table_record(row, table, reputations) if (row := by_name.get(each.id)) else {})
        for each in looked
    ]
    return sorted(records, key=lambda each: str(each["name"]))


def _record(node: PoolNode) -> dict[str, Any]:
    said = {} if node.node is None else _described(node.node)
    return {"node": node.id, "name": node.name, "state": node.state, "reason": node.reason, **said}


def _described(node: NodeDescription) -> dict[str, Any]:
    return {
        "owner": node.owner,
        "version": node.version,
        "devices": [
            {"id": each.id, "kind": each.kind, "name": each.name, "memory_bytes": each.memory_bytes}
            for each in node.devices
        ],
        "numerics": dict(sorted(node.numerics.items())),
        "models": sorted(map(str, node.models)),
        "speeds": [
            {
                "model": str(each.model),
                "numerics": each.numerics,
                "rows_per_s": each.rows_per_1000_s / 1000,
                "plus_minus": each.rows_per_1000_s * each.spread_per_mille / 1e6,
            }
            for each in node.speeds
        ],
        "labels": dict(sorted(node.labels.items())),
        "price": node.price,
        "max_sessions": node.max_sessions,
        "owners": list(node.owners),
        "licences": list(node.licences),
        "paused": node.paused,
        "draining": node.draining,
    }


def _table_record(row: NodeRow, table: NodeTable, reputations: ReputationTable) -> dict[str, Any]:
    from dim_pipelines.dispatch.explain import reputations_of

    return {
        "owner": row.owner,
        "since_ms": row.since_ms,
        "since": _ago(row.since_ms),
        "reach": row.reach,
        "relay": row.relay,
        "record_ends_ms": row.expires_ms,
        "reputations": reputations_of(reputations.of_node(row.name)),
        "last_batches": [
            {"batch": each.batch, "chosen": each.chosen, "reasons": list(each.reasons), "at_ms": each.at_ms}
            for each in table.refusals(row.name)
        ],
    }


def _ago(since_ms: int) -> str:
    seconds = max(0, time.time_ns() // 1_000_000 - since_ms) // _SECOND_MS
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def _split(addresses: str) -> list[str]:
    return [part.strip() for part in addresses.split(",") if part.strip()]
