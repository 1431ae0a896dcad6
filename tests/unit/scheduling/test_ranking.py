"""Which of the feasible nodes a batch would rather use, and why."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.domain.advertisement import Speed
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.domain.node import NodeDescription
from dim_pipelines.errors import ConfigurationError
from dim_pipelines.scheduling.feasibility import Need
from dim_pipelines.scheduling.ranking import (
    FEWEST_NODES,
    MOST_NODES,
    RANKERS,
    UNKNOWN,
    Candidate,
    Weights,
    rank,
    room,
    speed_on,
)

MODEL, OTHER = Cid.of(RAW, b"model"), Cid.of(RAW, b"other")
NEED = Need(models=(("torch", "FP32"),), packages=(MODEL,))
NODE = NodeDescription("a", bytes(32), "1", (), {"torch": "torch/2/cpu", "onnx": "onnx/1"}, "", 1000, max_sessions=4)
EVEN = Weights(jitter=0.0)


def speed(rows_per_s: float, spread: int = 0, model: Cid = MODEL, numerics: str = "torch/2/cpu/FP32") -> Speed:
    return Speed(
        model=model, numerics=numerics, rows_per_1000_s=round(rows_per_s * 1000), spread_per_mille=spread, samples=9
    )


def order(*candidates: Candidate, weights: Weights = EVEN, need: Need = NEED) -> list[str]:
    return [each.id for each in rank(candidates, need, weights, Random(1))]


@pytest.mark.parametrize(
    ("better", "question"),
    [
        (Candidate("b", replace(NODE, models=frozenset({MODEL}))), "model"),
        (Candidate("b", NODE, shared=True), "data"),
        (Candidate("b", replace(NODE, speeds=(speed(10.0),))), "speed"),
        (Candidate("b", NODE, sessions=0), "load"),
        (Candidate("b", NODE, reputation=0.9), "reputation"),
    ],
)
def test_each_question_alone_decides(better: Candidate, question: str) -> None:
    plain = Candidate("a", NODE)
    assert order(plain, better) == ["b", "a"]
    first, second = rank([plain, better], NEED, EVEN, Random(1))
    assert {name for name in first.parts if first.parts[name] != second.parts[name]} == {question}
    assert order(plain, better, weights=Weights.read({question: 0, "jitter": 0})) == ["a", "b"]


def test_the_cheaper_node_is_better_and_a_free_pool_is_equal() -> None:
    cheap, dear = Candidate("b", replace(NODE, price=10)), Candidate("a", replace(NODE, price=40))
    assert order(cheap, dear) == ["b", "a"]
    parts = {each.id: each.parts["price"] for each in rank([cheap, dear], NEED, EVEN, Random(1))}
    assert parts == {"b": 0.75, "a": 0.0}
    assert rank([Candidate("a", NODE)], NEED, EVEN, Random(1))[0].parts["price"] == 1.0


def test_a_speed_that_was_hardly_measured_counts_for_less() -> None:
    sure = Candidate("sure", replace(NODE, speeds=(speed(90.0, 10),)))
    unsure = Candidate("unsure", replace(NODE, speeds=(speed(100.0, 500),)))
    slow = Candidate("slow", replace(NODE, speeds=(speed(10.0),)))
    assert order(slow, unsure, sure) == ["sure", "unsure", "slow"]


def test_two_models_are_as_fast_as_both_one_after_the_other() -> None:
    need = Need(models=(("torch", "FP32"), ("onnx", "FP16")), packages=(MODEL, OTHER))
    node = replace(NODE, speeds=(speed(100.0), speed(100.0, 0, OTHER, "onnx/1/FP16")))
    assert speed_on(node, need) == pytest.approx(50.0)
    assert speed_on(replace(node, speeds=node.speeds[:1]), need) is None
    assert speed_on(replace(node, numerics={"torch": "torch/3/cpu", "onnx": "onnx/1"}), need) is None  # another class
    assert speed_on(replace(NODE, speeds=(speed(100.0, 1000),)), NEED) is None
    assert speed_on(node, Need(models=need.models)) is None


@pytest.mark.parametrize(("sessions", "most", "part"), [(1, 4, 0.75), (4, 4, 0.0), (9, 4, 0.0), (1, 0, UNKNOWN)])
def test_load_is_the_share_of_free_sessions(sessions: int, most: int, part: float) -> None:
    candidate = Candidate("a", replace(NODE, max_sessions=most), sessions=sessions)
    assert rank([candidate], NEED, EVEN, Random(1))[0].parts["load"] == part


def test_ties_are_broken_at_random_but_never_against_a_clear_difference() -> None:
    many = [Candidate(f"n{number}", NODE) for number in range(20)]
    firsts = {rank(many, NEED, Weights(), Random(seed))[0].id for seed in range(30)}
    assert len(firsts) > 5
    best = Candidate("best", replace(NODE, models=frozenset({MODEL})), reputation=0.9)
    assert {rank([*many, best], NEED, Weights(), Random(seed))[0].id for seed in range(30)} == {"best"}


def test_weights_are_read_by_name() -> None:
    assert Weights.read({}) == Weights()
    assert Weights.read({"speed": "2.5", "price": 0}) == Weights(speed=2.5, price=0.0)
    with pytest.raises(ConfigurationError, match="did you mean speed"):
        Weights.read({"sped": 1})
    for wrong in (-1, "fast", float("nan"), float("inf"), None):
        with pytest.raises(ConfigurationError, match="not a number"):
            Weights.read({"speed": wrong})
    nothing = Weights.read(dict.fromkeys([*RANKERS, "jitter"], 0))
    assert order(Candidate("b", NODE), Candidate("a", NODE, reputation=1.0), weights=nothing) == ["a", "b"]


@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.booleans(),
            st.floats(0, 1e6),
            st.integers(0, 2000),
            st.none() | st.integers(0, 9),
            st.floats(0, 1),
            st.integers(0, 1 << 40),
        ),
        max_size=20,
    )
)
def test_every_answer_is_between_0_and_1_and_nobody_is_lost(
    nodes: list[tuple[bool, bool, float, int, int | None, float, int]],
) -> None:
    candidates = [
        Candidate(
            str(number),
            replace(NODE, models=frozenset({MODEL} if held else ()), speeds=(speed(fast, spread),), price=price),
            shared,
            reputation,
            sessions,
        )
        for number, (held, shared, fast, spread, sessions, reputation, price) in enumerate(nodes)
    ]
    ranked = rank(candidates, NEED, Weights(), Random(0))
    assert {each.id for each in ranked} == {each.id for each in candidates}
    assert [each.score for each in ranked] == sorted((each.score for each in ranked), reverse=True)
    for each in ranked:
        assert set(each.parts) == set(RANKERS)
        assert all(0.0 <= part <= 1.0 for part in each.parts.values())
        assert 0.0 <= each.score <= 1.0 + Weights().jitter


@given(st.integers(0, 1 << 32))
def test_a_batch_opens_no_more_nodes_than_have_work(shards: int) -> None:
    assert FEWEST_NODES <= room(shards) <= MOST_NODES
    assert room(shards) <= max(FEWEST_NODES, shards)
