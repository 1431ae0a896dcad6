"""Every reason why a node cannot take the work."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dim_pipelines.domain.node import Device, NodeDescription
from dim_pipelines.scheduling.feasibility import Need, choose_numerics, class_on, infeasible

NODE = NodeDescription(
    name="a",
    key=bytes(32),
    version="1",
    devices=(Device("cpu", "cpu", "x", 8 << 30), Device("cuda:0", "cuda", "H", 80 << 30)),
    numerics={"torch": "torch/2/cpu", "echo": "echo/1"},
    swarm="",
    max_input_bytes=1000,
)
NEED = Need(models=(("torch", "FP32"),))


def test_a_node_that_has_everything_is_feasible() -> None:
    need = Need((("torch", "FP32"), ("echo", "FP16")), "torch/2/cpu/FP32+echo/1/FP16", "cuda", 80 << 30, {}, 1000)
    assert infeasible(NODE, need) == ()
    assert infeasible(NODE, replace(NEED, numerics="any")) == ()


@pytest.mark.parametrize(
    ("node", "need", "reason"),
    [
        (replace(NODE, draining=True), NEED, "it is draining"),
        (NODE, Need((("onnx", "FP32"),)), "it has no engine onnx (it has echo, torch)"),
        (replace(NODE, numerics={}), NEED, "it has no engine torch (it has none)"),
        (
            NODE,
            replace(NEED, numerics="other"),
            "it computes in numerics class torch/2/cpu/FP32, the batch is bound to other",
        ),
        (replace(NODE, devices=NODE.devices[:1]), replace(NEED, device="cuda"), "it has no cuda device (it has cpu)"),
        (replace(NODE, devices=()), NEED, "it has no any device (it has none)"),
        (
            NODE,
            replace(NEED, device="cpu", min_vram=9 << 30),
            f"its largest device has {8 << 30} bytes of memory, the batch needs {9 << 30}",
        ),
        (NODE, replace(NEED, labels={"b": "2", "a": "1"}), "it carries no labels, the batch needs a=1, b=2"),
        (
            replace(NODE, labels={"zone": "eu", "b": "2"}),
            replace(NEED, labels={"b": "2", "zone": "us"}),
            "it carries the labels b=2, zone=eu, the batch needs zone=us",
        ),
        (replace(NODE, paused=True), NEED, "it is paused by its owner, or outside its hours"),
        (
            replace(NODE, owners=("ann", "bob")),
            replace(NEED, owner="eve"),
            "it takes batches of ann, bob only, this one is of eve",
        ),
        (
            replace(NODE, licences=("MIT", "Apache-2.0")),
            replace(NEED, licences=("MIT", "GPL-3.0-only", "MIT OR GPL-3.0-only")),
            "it runs no model under GPL-3.0-only (it takes Apache-2.0, MIT)",
        ),
        (NODE, replace(NEED, max_shard_bytes=1001), "it takes shards of 1000 bytes, the batch has one of 1001"),
    ],
)
def test_each_reason_is_told(node: NodeDescription, need: Need, reason: str) -> None:
    assert infeasible(node, need) == (reason,)


def test_a_full_node_is_told_where_its_sessions_are_known() -> None:
    full = replace(NODE, max_sessions=2)
    assert infeasible(full, NEED) == infeasible(full, NEED, 1) == infeasible(NODE, NEED, 9) == ()
    assert infeasible(full, NEED, 2) == ("it holds 2 of 2 sessions",)


def test_owners_labels_and_licences_that_fit_are_no_reason() -> None:
    node = replace(NODE, owners=("ann",), licences=("mit",), labels={"a": "1", "b": "2"})
    assert infeasible(node, replace(NEED, owner="ann", licences=("MIT",), labels={"a": "1"})) == ()


def test_all_reasons_are_told_at_once() -> None:
    node = replace(NODE, draining=True, devices=())
    assert len(infeasible(node, replace(NEED, numerics="other", max_shard_bytes=2000))) == 4


def test_equal_classes_of_several_models_are_one() -> None:
    assert class_on(NODE, Need((("torch", "FP32"), ("torch", "FP32")))) == "torch/2/cpu/FP32"
    assert class_on(NODE, Need((("onnx", "FP32"),))) is None


def test_the_class_of_most_nodes_is_chosen_and_names_break_ties() -> None:
    other = replace(NODE, numerics={"torch": "torch/1/cpu"})
    assert choose_numerics({"a": NODE, "b": other, "c": NODE}, NEED) == "torch/2/cpu/FP32"
    assert choose_numerics({"a": NODE, "b": other}, NEED) == "torch/1/cpu/FP32"
    assert choose_numerics({"a": replace(NODE, draining=True), "b": other}, NEED) == "torch/1/cpu/FP32"
    assert choose_numerics({"a": replace(NODE, numerics={})}, NEED) is None
    assert choose_numerics({}, NEED) is None
