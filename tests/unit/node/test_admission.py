from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.node.admission import CREDIT_PER_DEVICE, MAX_CREDIT, DeviceMemory, DoesNotFit, credit_window

steps = st.lists(
    st.tuples(st.sampled_from(["admit", "release", "resident", "peak"]), st.sampled_from("abcd"), st.integers(0, 120)),
    max_size=40,
)


@given(st.integers(1, 300), steps)
def test_reservations_never_exceed_the_budget_and_nothing_in_use_is_evicted(
    budget: int, actions: list[tuple[str, str, int]]
) -> None:
    memory = DeviceMemory(budget)
    users: dict[str, int] = {}
    for action, model, size in actions:
        if action == "admit":
            before = sum(item.reserved for item in memory.loaded.values())
            try:
                evicted = memory.admit(model, 4, size)
            except DoesNotFit as error:
                assert error.need > error.free >= 0
                assert sum(item.reserved for item in memory.loaded.values()) == before
                continue
            assert all(not users.get(key) for key in evicted) and model not in evicted
            users[model] = users.get(model, 0) + 1
            assert sum(item.reserved for item in memory.loaded.values()) <= budget
            assert list(memory.loaded)[-1] == model
        elif action == "release" and users.get(model):
            memory.release(model)
            users[model] -= 1
        elif action == "resident" and model in memory.loaded:
            memory.measured(model, resident=min(size, memory.loaded[model].reserved))


def test_what_was_measured_takes_the_place_of_the_estimate() -> None:
    memory = DeviceMemory(1000)
    assert memory.need("a", 4, 100) == 200
    memory.measured("a", resident=120)
    memory.measured("a", batch_rows=4, peak=30)
    memory.measured("a", batch_rows=4, peak=20)
    assert memory.need("a", 4, 100) == 150
    assert memory.need("a", 8, 100) == 170
    memory.admit("a", 4, 100)
    memory.measured("a", batch_rows=8, peak=60)
    assert memory.loaded["a"].reserved == 180
    memory.drop("a")
    assert not memory.loaded


def test_the_least_recently_used_goes_first() -> None:
    memory = DeviceMemory(100)
    for model in "abc":
        memory.measured(model, resident=30)
        memory.measured(model, batch_rows=1)
        memory.admit(model, 1, 0)
        memory.release(model)
    memory.admit("a", 1, 0)
    memory.measured("d", resident=60)
    memory.measured("d", batch_rows=1)
    assert memory.admit("d", 1, 0) == ["b", "c"]
    with pytest.raises(DoesNotFit) as caught:
        memory.admit("b", 1, 20)
    assert caught.value.need == 30 and caught.value.free == 10


@given(st.floats(0, 1e9) | st.none(), st.integers(1, 8))
def test_short_tasks_are_asked_for_further_ahead(mean_ms: float | None, devices: int) -> None:
    window = credit_window(mean_ms, devices)
    assert CREDIT_PER_DEVICE * devices <= window <= max(MAX_CREDIT, CREDIT_PER_DEVICE * devices)
    if mean_ms is None or mean_ms > 100:
        assert window == CREDIT_PER_DEVICE * devices


def test_an_echo_is_asked_for_in_tens() -> None:
    assert credit_window(1.0) == 60 and credit_window(0.0) == MAX_CREDIT
