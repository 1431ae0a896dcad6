"""Where models cannot be confined, programs of strangers do not run, trusted or not."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.domain.model import ModelDescription, ModelInput
from dim_pipelines.identity.keys import load_or_create_key
from dim_pipelines.node import confinement
from dim_pipelines.node.daemon import NodeAddress, NodeConfig, serve
from dim_pipelines.settings import Home


async def test_only_the_homes_own_key_signs_programs_where_nothing_confines_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: Any, trusted: str, user_key: Ed25519PrivateKey
) -> None:
    monkeypatch.setattr(confinement, "unavailable", lambda: "a test says so")
    home = Home.at(tmp_path)
    announced: asyncio.Future[NodeAddress] = asyncio.get_running_loop().create_future()
    config = NodeConfig(home, name="open", engines=("echo",), trust=(trusted,), metrics_port=None)
    serving = asyncio.create_task(serve(config, ready=announced.set_result))
    done, _ = await asyncio.wait({serving, announced}, return_when=asyncio.FIRST_COMPLETED, timeout=60)
    assert announced in done, serving
    mine = type(client)(announced.result().address, user_key)
    tensor = ModelInput(name="x", datatype="FP32", shape=())
    description = ModelDescription(name="m", version="1", engine="torch", licence="MIT", inputs=(tensor,))
    files = {"dim-model.json": description.to_json()}

    model, signatures = await mine.put_model(files, user_key)
    stream = await mine.open(await mine.put_plan(model, signatures), batch="a")
    assert stream.refused.code == "forbidden" and "does not trust" in stream.refused.reason

    model, signatures = await mine.put_model(files, load_or_create_key(home.user_key))
    stream = await mine.open(await mine.put_plan(model, signatures), batch="b")
    assert stream.refused.code == "node_refused" and "no engine 'torch'" in stream.refused.reason

    await mine.close()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(serving, 20)
    assert announced.result().metrics == ""
