"""In which order a node asks orchestrators, and how it reaches its own server."""

from __future__ import annotations

import asyncio
import random
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.errors import ConfigurationError, NodeUnreachable
from dim_pipelines.node.attachment import Attachment, Door, arrange
from dim_pipelines.wire.pump import connect_own


def door(name: str) -> Door:
    return Door(name, name, lambda: None)  # type: ignore[arg-type, return-value]


@given(st.lists(st.sampled_from("abcd"), max_size=8), st.sampled_from(["", "a", "x"]), st.integers())
def test_all_are_asked_and_the_lost_one_last(names: list[str], lost: str, seed: int) -> None:
    asked = [each.name for each in arrange([door(name) for name in names], lost, random.Random(seed))]
    assert sorted(asked) == sorted(names)
    if lost in asked:
        assert set(asked[asked.index(lost) :]) == {lost}


def test_nodes_do_not_all_ask_the_same_one_first() -> None:
    doors = [door(name) for name in "abc"]
    assert {arrange(doors, "", random.Random(seed))[0].name for seed in range(50)} == {"a", "b", "c"}


async def test_a_roster_without_orchestrators_is_asked_again_and_said(caplog: pytest.LogCaptureFixture) -> None:
    asked = asyncio.Event()

    def doors() -> list[Door]:
        if caplog.messages:
            asked.set()
        return []

    changes: list[str] = []
    attachment = Attachment("k51", b"", doors, "unix:/nowhere", changed=lambda: changes.append("changed"))
    running = asyncio.create_task(attachment.run())
    await asyncio.wait_for(asked.wait(), 60)
    running.cancel()
    await asyncio.wait([running])
    assert attachment.state.error == "the roster names no orchestrator with an address"
    assert not changes and not attachment.attached_to


async def test_it_is_unused_when_the_last_tunnel_has_ended() -> None:
    attachment = Attachment("k51", b"", list, "unix:/nowhere", changed=lambda: None)
    await attachment.unused()
    ends = [asyncio.Event(), asyncio.Event()]
    for end in ends:
        task = asyncio.create_task(end.wait())
        attachment._tunnels.add(task)  # type: ignore[arg-type]
        task.add_done_callback(attachment._tunnels.discard)
    waiting = asyncio.create_task(attachment.unused())
    for end in ends:
        await asyncio.sleep(0)
        assert not waiting.done()
        end.set()
    await asyncio.wait_for(waiting, 60)


@pytest.mark.parametrize("kind", ["unix", "127.0.0.1", "::1", "localhost"])
async def test_the_node_reaches_its_own_server_wherever_it_listens(tmp_path: Path, kind: str) -> None:
    async def greet(reader: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    if kind == "unix":
        server = await asyncio.start_unix_server(greet, tmp_path / "s")
        address = f"unix:{tmp_path}/s"
    else:
        try:
            server = await asyncio.start_server(greet, kind)
        except OSError:
            pytest.skip(f"this machine has no {kind}")
        port = server.sockets[0].getsockname()[1]
        address = f"[{kind}]:{port}" if ":" in kind else f"{kind}:{port}"
    async with server:
        with await connect_own(address) as local:
            assert await asyncio.get_running_loop().sock_recv(local, 100) == b"hello"


async def test_a_server_that_has_gone_is_said_to_have(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        for address in (f"unix:{tmp_path}/s", f"127.0.0.1:{taken.getsockname()[1]}"):
            with pytest.raises(NodeUnreachable, match="nobody listens at"):
                await connect_own(address)
    with pytest.raises(ConfigurationError):
        await connect_own("nonsense")
