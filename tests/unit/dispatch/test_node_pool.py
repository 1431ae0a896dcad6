"""A pool of addresses: nodes are known by their keys, and how they stand towards a batch."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from dim_pipelines.dispatch.candidates import choose_class, explain_nodes, reasons_against, standing_of
from dim_pipelines.dispatch.explain import plain, reputations_of
from dim_pipelines.dispatch.node_pool import NodePool, PoolNode
from dim_pipelines.domain.node import Device, NodeDescription
from dim_pipelines.errors import ConfigurationError, NodeRefused, NoFeasibleNode
from dim_pipelines.scheduling.attendance import Presence, Standing
from dim_pipelines.scheduling.feasibility import Need
from dim_pipelines.scheduling.ranking import Weights
from dim_pipelines.scheduling.reputation import Reputation
from dim_pipelines.testing.scripted_node import ScriptedNode

SAID = NodeDescription("a", bytes(32), "1", (Device("cpu", "cpu", "x", 1),), {"echo": "echo/1"}, "", 1000)
NEED = Need((("echo", "FP32"),), "echo/1/FP32")
GOOD = PoolNode("k51a", "a", Presence.READY, "ELIGIBLE", node=SAID)


async def test_the_same_node_at_two_addresses_is_used_once() -> None:
    key = bytes(range(32))
    first, second = ScriptedNode("a", key=key), ScriptedNode("other", key=key)
    pool = NodePool([await first.start(), await second.start()])
    try:
        described = await pool.describe()
        assert isinstance(described["a"], NodeDescription)
        error = described[second.address]
        assert isinstance(error, ConfigurationError) and "the same node as a" in error.message
    finally:
        await pool.close()
        await first.kill()
        await second.kill()


async def test_a_client_is_of_that_very_node() -> None:
    node = ScriptedNode("a")
    pool = NodePool([await node.start()])
    try:
        (seen,) = await pool.look()
        assert (await pool.connect(seen.id)).address == node.address
        node.key = bytes(32)
        with pytest.raises(NodeRefused, match="another node stands at"):
            await pool.connect(seen.id)
    finally:
        await pool.close()
        await node.kill()


@pytest.mark.parametrize(
    ("node", "standing"),
    [
        (GOOD, Standing(Presence.READY)),
        (replace(GOOD, node=replace(SAID, paused=True)), Presence.LEAVING),
        (replace(GOOD, node=replace(SAID, numerics={})), Presence.LEAVING),
        (replace(GOOD, presence=Presence.DOUBTFUL, reason="silent"), Standing(Presence.DOUBTFUL, "silent")),
        (replace(GOOD, presence=Presence.GONE, state="GONE"), Standing(Presence.GONE, "GONE")),
        # its sessions are full, one of them may be ours
        (replace(GOOD, node=replace(SAID, max_sessions=1), sessions=1), Standing(Presence.READY)),
    ],
)
def test_standing(node: PoolNode, standing: Standing | Presence) -> None:
    found = standing_of(node, NEED)
    assert found == standing if isinstance(standing, Standing) else found.presence is standing


def test_every_reason_is_given_the_pools_first() -> None:
    node = replace(GOOD, presence=Presence.DOUBTFUL, reason="silent", node=replace(SAID, paused=True, devices=()))
    assert reasons_against(node, NEED) == (
        "silent", "it is paused by its owner, or outside its hours", "it has no any device (it has none)",
    )  # fmt: skip
    assert reasons_against(replace(GOOD, node=replace(SAID, max_sessions=1), sessions=1), NEED) != ()


def test_a_class_is_chosen_among_those_that_can() -> None:
    other = replace(SAID, name="b", numerics={"echo": "echo/2"})
    pool = [GOOD] + [PoolNode(f"k51{n}", f"b{n}", Presence.DOUBTFUL, "SUSPECT", "silent", node=other) for n in range(3)]
    assert choose_class(pool, replace(NEED, numerics=None)) == "echo/1/FP32"
    with pytest.raises(NoFeasibleNode) as caught:
        choose_class(pool[1:2], replace(NEED, numerics=None))
    assert caught.value.reasons == {"b0": "silent"}
    with pytest.raises(NoFeasibleNode, match="there are no nodes"):
        choose_class([], NEED)


def test_explained_are_the_best_first_then_the_others_by_name() -> None:
    pool = [
        replace(GOOD, id="k51z", name="z", presence=Presence.GONE, reason="revoked: it lied"),
        replace(GOOD, id="k51y", name="y", presence=Presence.DOUBTFUL, reason="silent"),
        GOOD,
        replace(GOOD, id="k51b", name="b"),
    ]
    explained = explain_nodes(
        pool, NEED, swarm="", weights=Weights(jitter=0.0), reputations={"k51b": Reputation(good=50.0, at_ms=1000)},
        now_ms=1000, random=Random(0),
    )  # fmt: skip
    assert [each.name for each in explained] == ["b", "a", "y", "z"]
    assert [each.feasible for each in explained] == [True, True, False, False]
    assert explained[2].reasons == ("silent",) and explained[2].score is None
    record = plain(explained[0])
    assert record["score"] > plain(explained[1])["score"] and record["parts"]["reputation"] > 0.9
    assert reputations_of({"c": Reputation(good=1.0, at_ms=1)})["c"].startswith("0.")
