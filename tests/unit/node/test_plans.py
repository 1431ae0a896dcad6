from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.content.store import Block
from dim_pipelines.content.unixfs import add_folder
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.domain.model import ModelDescription, ModelInput
from dim_pipelines.domain.work import Plan, PlanStep
from dim_pipelines.errors import Forbidden, InputError, NodeRefused
from dim_pipelines.identity.keys import public_bytes
from dim_pipelines.identity.signatures import GRANT_DOMAIN, MODEL_DOMAIN, sign
from dim_pipelines.node.controls import Controls
from dim_pipelines.node.model_cache import ModelCache
from dim_pipelines.node.plans import MAX_STEPS, PlanReader

OWN = Ed25519PrivateKey.generate()
NUMERICS = {"torch": "torch-1", "echo": "echo-1"}


class Shop:
    """A store, a cache, a reader, and ways to fill them."""

    def __init__(self, folder: Path) -> None:
        self.store = MemoryContentStore()
        self.cache = ModelCache(folder, 1 << 20)
        self.reader = PlanReader(self.store, self.cache, {public_bytes(OWN)})

    async def model(self, engine: str = "torch", **more: Any) -> Cid:
        tensor = ModelInput(name="x", datatype="FP32", shape=())
        described = ModelDescription(name="m", version="1", engine=engine, licence="MIT", inputs=(tensor,), **more)
        return await add_folder(self.store, {"dim-model.json": described.to_json(), "model.pt2": b"program"})

    async def signed(self, model: Cid, key: Ed25519PrivateKey = OWN, domain: str = MODEL_DOMAIN) -> Cid:
        signature = sign(key, domain, model)
        await self.store.put([Block(signature.cid(), signature.encode())])
        return signature.cid()

    async def plan(self, *steps: PlanStep, numerics: str = "any") -> Cid:
        plan = Plan(work=Cid.of(RAW, b""), numerics=numerics, steps=steps)
        await self.store.put([Block(plan.cid(), plan.encode())])
        return plan.cid()


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def step(model: Cid, *signatures: Cid, batch_rows: int = 4) -> PlanStep:
    return PlanStep(model=model, batch_rows=batch_rows, columns=("x",), signatures=signatures)


async def test_a_signed_program_is_brought_and_held(shop: Shop) -> None:
    model = await shop.model()
    plan = await shop.plan(step(model, await shop.signed(model)), numerics="torch-1/FP32")
    numerics, steps = await shop.reader.read(plan, NUMERICS)
    assert numerics == "torch-1/FP32" and model in shop.cache
    assert (steps[0].model.folder / "model.pt2").read_bytes() == b"program" and steps[0].key == str(model)
    shop.reader.release(steps)


async def test_no_byte_of_a_program_is_read_without_a_trusted_signature(shop: Shop) -> None:
    model, other = await shop.model(), await shop.model(dtype="FP16")
    stranger = Ed25519PrivateKey.generate()
    for signatures, why in (
        ((), "no signature"),
        ((await shop.signed(model, stranger),), "does not trust"),
        ((await shop.signed(other),), "the signature is for"),
        ((await shop.signed(model, OWN, GRANT_DOMAIN),), "the signature is for"),
        ((Cid.of(RAW, b"nowhere"),), "not in this store"),
        ((model,), "expected a dim/signature|not dag-cbor"),
    ):
        with pytest.raises(Forbidden, match=why):
            await shop.reader.read(await shop.plan(step(model, *signatures)), NUMERICS)
        assert model not in shop.cache
    both = (await shop.signed(model, stranger), await shop.signed(model))
    assert await shop.reader.read(await shop.plan(step(model, *both)), NUMERICS)


async def test_an_engine_that_runs_no_code_needs_no_signature(shop: Shop) -> None:
    numerics, _ = await shop.reader.read(await shop.plan(step(await shop.model("echo"))), NUMERICS)
    assert numerics == "echo-1/FP32"


async def test_plans_that_this_node_cannot_compute_are_refused(shop: Shop) -> None:
    echo = await shop.model("echo", max_batch_rows=8)
    odd = await shop.model("other")
    with pytest.raises(NodeRefused, match="no engine 'other'"):
        await shop.reader.read(await shop.plan(step(odd, await shop.signed(odd))), NUMERICS)
    with pytest.raises(NodeRefused, match="numerics class echo-2"):
        await shop.reader.read(await shop.plan(step(echo), numerics="echo-2/FP32"), NUMERICS)
    for rows in (0, 9):
        with pytest.raises(InputError, match="takes 1 to 8"):
            await shop.reader.read(await shop.plan(step(echo, batch_rows=rows)), NUMERICS)
    for count in (0, MAX_STEPS + 1):
        with pytest.raises(InputError, match="steps"):
            await shop.reader.read(await shop.plan(*[step(echo)] * count), NUMERICS)
    with pytest.raises(NodeRefused):
        await shop.reader.read(await shop.plan(step(echo), step(odd, await shop.signed(odd))), NUMERICS)
    large = await add_folder(shop.store, {"x": bytes(1 << 20)})
    with pytest.raises(InputError):
        await shop.reader.read(large, NUMERICS)


async def test_no_byte_of_a_model_is_read_whose_licence_the_owner_refuses(shop: Shop) -> None:
    model = await shop.model()
    reader = PlanReader(shop.store, shop.cache, {public_bytes(OWN)}, Controls(licences=("Apache-2.0",)).admit_licence)
    plan = await shop.plan(step(model, await shop.signed(model)))
    with pytest.raises(NodeRefused, match="licence MIT"):
        await reader.read(plan, NUMERICS)
    assert model not in shop.cache
    assert await shop.reader.read(plan, NUMERICS)


async def test_steps_hold_only_while_their_publisher_is_trusted(shop: Shop) -> None:
    publishers = {public_bytes(OWN)}
    reader = PlanReader(shop.store, shop.cache, publishers)
    model = await shop.model()
    _, signed = await reader.read(await shop.plan(step(model, await shop.signed(model))), NUMERICS)
    _, free = await reader.read(await shop.plan(step(await shop.model("echo"))), NUMERICS)
    assert signed[0].publisher == public_bytes(OWN) and free[0].publisher is None
    assert reader.still_allowed([*signed, *free])
    publishers.clear()
    assert not reader.still_allowed(signed) and reader.still_allowed(free)


async def test_a_model_on_the_disk_keeps_the_signatures_that_let_it_in(shop: Shop, tmp_path: Path) -> None:
    model = await shop.model()
    signature = await shop.signed(model)
    _, steps = await shop.reader.read(await shop.plan(step(model, signature)), NUMERICS)
    shop.reader.release(steps)
    assert shop.cache.vouchers(model) == (signature,)
    again = ModelCache(tmp_path, 1 << 20)
    assert again.vouchers(model) == (signature,) and again.models() == [model]
    (tmp_path.parent / f"{tmp_path.name}.signatures.json").write_text("{")
    assert ModelCache(tmp_path, 1 << 20).vouchers(model) == ()
