"""What the owner of a node asks and says: status, pause, resume, set, drain.

The owner's rules are a file of the home, so that they can be written whether or not the daemon runs; a running one
sees them within a second.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dim_pipelines.cli.console import DebugFlag, Exit, JsonFlag, Screen
from dim_pipelines.errors import NodeUnreachable

if TYPE_CHECKING:
    from dim_pipelines.node.controls import Controls
    from dim_pipelines.settings import Home
    from dim_pipelines.wire.v1 import node_pb2
    from dim_pipelines.wire.v1.node_pb2_grpc import NodeServiceAsyncStub

HomeOption = Annotated[
    Path | None, typer.Option("--home", metavar="DIR", help="DIM_HOME of the node; $DIM_HOME when left out.")
]

_CALL_S = 10.0


def status(home: HomeOption = None, as_json: JsonFlag = False, debug: DebugFlag = False) -> int:
    """Show how the node of this home is: whether it takes work, who reaches it, by which roads its record travels."""
    from dim_pipelines.node.controls_file import controls_path, load_controls
    from dim_pipelines.settings import Home

    screen, where = Screen(as_json, debug), Home.at(home)
    controls = load_controls(controls_path(where))
    try:
        found = asyncio.run(_status(where))
    except NodeUnreachable as error:
        record = {"running": False, "reason": error.message, "controls": controls.to_plain()}
        screen.result(record, "\n".join([f"not running: {error.message}", *_rules(controls)]))
        return Exit.FAILED
    record = {"running": True, **_record(found), "controls": controls.to_plain()}
    screen.result(record, "\n".join([*_lines(found), *_rules(controls)]))
    return Exit.DONE


def pause(home: HomeOption = None, as_json: JsonFlag = False, debug: DebugFlag = False) -> int:
    """Take no work until `dim node resume`: running tasks are finished, waiting ones go to other nodes."""
    return _change(home, "paused", ["true"], Screen(as_json, debug), "paused: running tasks are finished, no new ones")


def resume(home: HomeOption = None, as_json: JsonFlag = False, debug: DebugFlag = False) -> int:
    """Take work again."""
    return _change(home, "paused", [], Screen(as_json, debug), "takes work again, within its hours")


def set_(
    setting: Annotated[
        str, typer.Argument(help="hours, max_sessions, owners, licences, price or labels.", metavar="SETTING")
    ],
    values: Annotated[
        list[str] | None,
        typer.Argument(
            help='"22:00-07:00"; a number; names; ids of licences; KEY=VALUE. None: back to no limit.', metavar="VALUE"
        ),
    ] = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Set one of the owner's rules: when the node works, for whom, what it runs, how much at a time, for how much."""
    return _change(home, setting, values or [], Screen(as_json, debug), "")


def drain(
    timeout: Annotated[
        float, typer.Option("--timeout", min=0, help="Seconds until sessions are cut; 0: they are waited for.")
    ] = 0.0,
    home: HomeOption = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Take no work until the daemon is started again, and return when nothing runs any more."""
    from dim_pipelines.settings import Home

    screen = Screen(as_json, debug)
    with screen.progress("draining"):
        reply = asyncio.run(_drain(Home.at(home), timeout))
    record = {"finished": reply.finished, "handed_back": reply.handed_back}
    screen.result(record, f"drained: {reply.finished} tasks finished, {reply.handed_back} handed back")
    return Exit.DONE


@asynccontextmanager
async def running_node(home: Home) -> AsyncIterator[NodeServiceAsyncStub]:
    """Give a stub of the daemon that runs in a home; gRPC's errors become DIM's.

    Raises:
        NodeUnreachable: none runs.
        DimError: what it answered.
    """
    import grpc

    from dim_pipelines.wire.channel import open_channel
    from dim_pipelines.wire.status import from_rpc_error
    from dim_pipelines.wire.v1.node_pb2_grpc import NodeServiceStub

    try:
        announced = json.loads((home.node / "node.json").read_bytes())
        address = str(announced["address"])
    except FileNotFoundError as error:
        raise NodeUnreachable(f"no node daemon runs in {home.root}", hint="dim node start") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NodeUnreachable(f"{home.node / 'node.json'} cannot be read", hint="dim node start") from error
    channel = open_channel(address)
    try:
        yield NodeServiceStub(channel)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    finally:
        await channel.close(None)


async def _status(home: Home) -> node_pb2.NodeStatus:
    from dim_pipelines.wire.v1 import node_pb2

    async with running_node(home) as node:
        return await node.GetStatus(node_pb2.GetStatusRequest(), timeout=_CALL_S)


async def _drain(home: Home, timeout_s: float) -> node_pb2.DrainReply:
    from dim_pipelines.wire.v1 import node_pb2

    async with running_node(home) as node:
        return await node.Drain(node_pb2.DrainRequest(timeout_ms=int(timeout_s * 1000)))


def _change(home: Path | None, key: str, words: list[str], screen: Screen, said: str) -> int:
    from dim_pipelines.node.controls import change_controls
    from dim_pipelines.node.controls_file import controls_path, load_controls, save_controls
    from dim_pipelines.settings import Home

    path = controls_path(Home.at(home))
    controls = change_controls(load_controls(path), key, words)
    save_controls(path, controls)
    screen.result({"controls": controls.to_plain(), "file": str(path)}, said or "\n".join(_rules(controls)))
    return Exit.DONE


def _rules(controls: Controls) -> list[str]:
    return [
        f"paused        {'yes' if controls.paused else 'no'}",
        f"hours         {controls.hours.text or 'always'}",
        f"max_sessions  {controls.max_sessions}",
        f"owners        {', '.join(controls.owners) or 'everybody'}",
        f"licences      {', '.join(controls.licences) or 'all'}",
        f"price         {controls.price} per 1,000 rows (millionths of a credit)",
        f"labels        {', '.join(f'{key}={value}' for key, value in controls.labels.items()) or 'none'}",
    ]


def _lines(found: node_pb2.NodeStatus) -> list[str]:
    said = found.description
    lines = [f"node {said.name} {said.version}: {found.closed or 'takes work'}"]
    lines.append(f"  {found.sessions} sessions, {found.tasks} tasks, {len(said.models)} models on the disk")
    lines += [f"  {each.id}: {each.name}, {each.memory_bytes / (1 << 30):.1f} GiB" for each in said.devices]
    if found.controls_error:
        lines.append(f"  the newest rules are not in force: {found.controls_error}")
    if found.network:
        lines += _network_lines(found)
    return lines


def _network_lines(found: node_pb2.NodeStatus) -> list[str]:
    lines = [f"network {found.network}"]
    if found.revoked:
        return [*lines, f"  this node is a member no more: {found.revoked}"]
    reason = f": {found.state_reason}" if found.state_reason else ""
    lines += [f"  name      {found.description.id}", f"  state     {found.state or 'not known yet'}{reason}"]
    where = ", ".join(found.endpoints or found.attached_to) or "nowhere yet"
    lines.append(f"  reach     {found.reach} at {where} ({found.reach_reason})")
    for road in found.roads:
        trouble = f", now: {road.last_error}" if road.last_error else ""
        lines.append(f"  {road.name:<9} {_ago(road.last_ok_ms)}, {road.failures} failures{trouble}")
    lines.append(f"  roster    version {found.roster_version}, heard of {_ago(found.roster_seen_ms)}")
    for role, ends in found.certificates.items():
        lines.append(f"  {role} certificate for {max(0.0, ends / 1000 - time.time()) / 3600:.1f} h more")
    return lines


def _ago(unix_ms: int) -> str:
    return f"{max(0.0, time.time() - unix_ms / 1000):.0f} s ago" if unix_ms else "never"


def _record(found: node_pb2.NodeStatus) -> dict[str, Any]:
    """Give the status as plain data, CIDs as text."""
    from google.protobuf.json_format import MessageToDict

    from dim_pipelines.domain.cid import Cid
    from dim_pipelines.identity.keys import format_public_key

    # The default values are written too: whoever reads this would have to know them otherwise.
    plain = MessageToDict(found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    said = found.description
    plain["description"]["key"] = format_public_key(said.key)
    plain["description"]["models"] = [str(Cid(raw)) for raw in said.models]
    for written, speed in zip(plain["description"]["speeds"], said.speeds, strict=True):
        written["model"] = str(Cid(speed.model))
    return dict(plain)
