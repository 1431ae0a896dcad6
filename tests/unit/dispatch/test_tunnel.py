"""The socket of a tunnel: short, private, bounded and removed."""

from __future__ import annotations

import asyncio
import os
import stat
import tempfile
from pathlib import Path

import pytest

from dim_pipelines.dispatch import tunnel as tunnels
from dim_pipelines.dispatch.tunnel import MAX_CONNECTIONS, Tunnel
from dim_pipelines.errors import NodeUnreachable
from dim_pipelines.wire.channel import open_channel


def mode(path: Path) -> int | None:
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else None


async def test_the_socket_is_its_owners_and_short_in_a_long_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("d" * 120)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    tunnel = Tunnel([], "k51")
    path = Path(tunnel.address.removeprefix("unix:"))
    assert len(os.fsencode(path)) < 100
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    await tunnel.close()
    assert mode(path.parent) is None


async def test_an_orchestrator_that_does_not_answer_is_said_not_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnels, "_REACH_S", 0.1)
    tunnel = Tunnel([lambda: open_channel(f"unix:{tmp_path}/nobody")] * 2, "k51")
    reader, writer = await asyncio.open_unix_connection(tunnel.address.removeprefix("unix:"))
    assert await asyncio.wait_for(reader.read(), 60) == b""
    writer.close()
    assert isinstance(tunnel.error, NodeUnreachable) and "does not answer" in tunnel.error.message
    await tunnel.close()


async def test_connections_are_bounded_and_close_ends_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnels, "_REACH_S", 3600.0)
    tunnel = Tunnel([lambda: open_channel(f"unix:{tmp_path}/nobody")], "k51")
    path = tunnel.address.removeprefix("unix:")
    held = [await asyncio.open_unix_connection(path) for _ in range(MAX_CONNECTIONS)]
    reader, writer = await asyncio.open_unix_connection(path)
    assert await asyncio.wait_for(reader.read(), 60) == b""  # one too many, while the others still wait
    assert tunnel.error is None
    writer.close()
    await tunnel.close()
    for reader, writer in held:
        assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()
