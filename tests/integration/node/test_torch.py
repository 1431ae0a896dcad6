"""A real `.pt2` through a real daemon: signed or refused, numerics, bad rows, and a grid that content fixes."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.content.shards import decode_shard, encode_shard
from dim_pipelines.content.store import Block
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.domain.events import Task, TaskDone, TaskFailed
from dim_pipelines.domain.model import ModelDescription, ModelInput, ModelOutput, Step
from dim_pipelines.node.process import NodeProcess
from dim_pipelines.wire.v1 import node_pb2

ROWS = 4


@pytest.fixture(scope="module")
def program(require: Any) -> bytes:
    """A linear layer whose index lookup fails on values outside of its table."""
    require(importlib.util.find_spec("torch") is not None, "torch", "pip install 'dim-pipelines[node]'")
    import torch

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(10, 4)
            self.layer = torch.nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.table(x).mean(dim=1))

    torch.manual_seed(1)
    exported = torch.export.export(Model().eval(), (torch.zeros(ROWS, 2, dtype=torch.int64),))
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def torch_node(tmp_path_factory: pytest.TempPathFactory, trusted: str) -> Iterator[NodeProcess]:
    with NodeProcess.start(tmp_path_factory.mktemp("t"), name="torch", trust=[trusted]) as node:
        yield node


@pytest.fixture
async def torch_client(torch_node: NodeProcess, client: Any, user_key: Ed25519PrivateKey) -> AsyncIterator[Any]:
    made = type(client)(torch_node.address, user_key)
    yield made
    await made.close()


def package(program: bytes, **more: Any) -> dict[str, Any]:
    description = ModelDescription(
        name="table",
        version="1",
        engine="torch",
        licence="MIT",
        files={"program": "model.pt2"},
        inputs=(ModelInput(name="x", datatype="INT64", shape=(2,)),),
        outputs=(ModelOutput(name="scores", datatype="FP32", shape=(3,)),),
        max_batch_rows=ROWS,
        **more,
    )
    return {"dim-model.json": description.to_json(), "model.pt2": program}


def rows(values: list[list[int]], first: int = 0) -> Block:
    column = pa.FixedSizeListArray.from_arrays(pa.array(np.array(values, dtype=np.int64).reshape(-1)), 2)
    data = encode_shard(pa.table({"id": pa.array(range(first, first + len(values))), "x": column}))
    return Block(Cid.of(RAW, data), data)


async def compute(client: Any, plan: Cid, batch: str, *shards: Block) -> list[Any]:
    await client.put(list(shards))
    stream = await client.open(plan, batch=batch)
    assert stream.opened, stream.refused
    await stream.send([Task(number, 0, (item.cid,), 1 << 16) for number, item in enumerate(shards)])
    await stream.until(lambda stream: len(stream.outcomes) == len(shards), 60)
    await stream.end()
    return sorted(stream.outcomes, key=lambda item: item.shard)


async def test_a_signed_program_computes_and_rows_never_depend_on_their_neighbours(
    torch_client: Any, program: bytes, user_key: Ed25519PrivateKey
) -> None:
    model, signatures = await torch_client.put_model(package(program), user_key)
    plan = await torch_client.put_plan(model, signatures, batch_rows=ROWS)
    good = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [1, 1]]
    bad = [[0, 1], [2, 3], [99, 5], [6, 7], [8, 9], [-50, 1]]
    first, second, third = await compute(torch_client, plan, "t", rows(good), rows(bad), rows([[99, 99]] * 3))
    assert isinstance(first, TaskDone) and first.rows == 6 and not first.row_errors
    assert isinstance(second, TaskDone) and second.rows == 4
    assert [error.row for error in second.row_errors] == [2, 5]
    assert "IndexError" in second.row_errors[0].reason or "index" in second.row_errors[0].reason
    assert isinstance(third, TaskFailed) and third.code == "engine_failed"
    whole = decode_shard(await torch_client.get(first.output))
    part = decode_shard(await torch_client.get(second.output))
    assert part.column("id").to_pylist() == [0, 1, 3, 4]
    expected = [whole.column("scores")[row].as_py() for row in (0, 1, 3, 4)]
    assert part.column("scores").to_pylist() == expected
    again = await compute(torch_client, plan, "t2", rows(good))
    assert again[0].output == first.output and first.usage.compute_ms >= 0


async def test_programs_need_the_signature_of_a_trusted_publisher(torch_client: Any, program: bytes) -> None:
    files = package(program) | {"NOTE": b"never signed by anybody trusted"}
    unsigned, _ = await torch_client.put_model(files)
    stream = await torch_client.open(await torch_client.put_plan(unsigned), batch="u")
    assert stream.refused.code == "forbidden" and "no signature" in stream.refused.reason
    _, signatures = await torch_client.put_model(files, Ed25519PrivateKey.generate())
    stream = await torch_client.open(await torch_client.put_plan(unsigned, signatures), batch="u")
    assert stream.refused.code == "forbidden" and "does not trust" in stream.refused.reason
    models = await list_models(torch_client)
    assert str(unsigned) not in models


async def test_a_file_that_is_no_program_is_refused_when_it_is_loaded(
    torch_client: Any, user_key: Ed25519PrivateKey
) -> None:
    model, signatures = await torch_client.put_model(package(b"not a zip"), user_key)
    stream = await torch_client.open(await torch_client.put_plan(model, signatures), batch="n")
    assert stream.refused.code == "engine_failed" and "cannot be loaded" in stream.refused.reason


async def test_outputs_other_than_described_fail(
    torch_client: Any, program: bytes, user_key: Ed25519PrivateKey
) -> None:
    described = package(program)
    wrong = ModelDescription.from_json(described["dim-model.json"]).model_copy(
        update={"outputs": (ModelOutput(name="scores", datatype="FP64", shape=(3,)),)}
    )
    model, signatures = await torch_client.put_model(described | {"dim-model.json": wrong.to_json()}, user_key)
    (outcome,) = await compute(torch_client, await torch_client.put_plan(model, signatures), "w", rows([[1, 2]]))
    assert isinstance(outcome, TaskFailed) and "FP64 is expected" in outcome.message


async def test_postprocessing_makes_the_columns(torch_client: Any, program: bytes, user_key: Ed25519PrivateKey) -> None:
    steps = (Step.model_validate({"op": "argmax", "input": "scores", "output": "label"}),)
    model, signatures = await torch_client.put_model(package(program, postprocess=steps), user_key)
    (outcome,) = await compute(torch_client, await torch_client.put_plan(model, signatures), "p", rows([[1, 2]] * 5))
    output = decode_shard(await torch_client.get(outcome.output))
    assert output.schema.names == ["id", "label"] and len(set(output.column("label").to_pylist())) == 1


async def test_the_numerics_class_names_what_bits_depend_on(torch_client: Any) -> None:
    described = await torch_client.node.DescribeNode(node_pb2.DescribeNodeRequest())
    base = described.numerics["torch"]
    assert base.startswith("torch-1-") and "/cpu-" in base and "-t1/" in base and "transforms" in base
    warmed = {message.stage async for message in torch_client.node.WarmModel(await warm(torch_client))}
    assert "done" in warmed


async def warm(client: Any) -> Any:
    model, _ = await client.put_model(
        {
            "dim-model.json": ModelDescription(
                name="echo",
                version="1",
                engine="echo",
                licence="MIT",
                inputs=(ModelInput(name="x", datatype="INT64", shape=()),),
                outputs=(ModelOutput(name="y", datatype="INT64", shape=()),),
            ).to_json()
        }
    )
    return node_pb2.WarmModelRequest(model=model, batch_rows=2)


async def list_models(client: Any) -> set[str]:
    """Name the models that lie on the node's disk."""
    models = Path(client.address.removeprefix("unix:")).parent / "models"
    return {path.name for path in models.iterdir()}
