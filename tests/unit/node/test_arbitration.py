from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from dim_pipelines.node.arbitration import (
    MINIMUM_SLICE_MS,
    QUANTUM_MS,
    Accounts,
    Candidate,
    charge,
    choose,
    forget,
)

sessions = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 5), st.floats(30, 400)), min_size=1, max_size=5
).map(lambda items: [(Candidate(i, owner, weight, "m"), cost) for i, (owner, weight, cost) in enumerate(items)])


def play(served: list[tuple[Candidate, float]], total_ms: float, accounts: Accounts | None = None) -> Counter[int]:
    """Let everybody have work all the time, until so much time was given away."""
    accounts = accounts or Accounts()
    costs = {item.session: cost for item, cost in served}
    waiting = [item for item, _ in served]
    used: Counter[int] = Counter()
    while sum(used.values()) < total_ms:
        number, accounts = choose(accounts, waiting)
        accounts = charge(accounts, waiting[number], costs[number])
        used[number] += costs[number]
    return used


@settings(max_examples=20)
@given(sessions)
def test_owners_share_alike_and_sessions_by_weight(served: list[tuple[Candidate, float]]) -> None:
    longest = max(cost for _, cost in served)
    total = 20 * len(served) * (longest + 5 * QUANTUM_MS)
    used = play(served, total)
    owners: Counter[str] = Counter()
    for item, _ in served:
        owners[item.owner] += used[item.session]
    slack = 3 * (longest + 5 * QUANTUM_MS)
    fair = sum(used.values()) / len(owners)
    assert all(abs(value - fair) <= slack for value in owners.values())
    for owner, whole in owners.items():
        mine = [item for item, _ in served if item.owner == owner]
        weights = sum(item.weight for item in mine)
        for item in mine:
            # a session's share may be off by a round of everybody's quanta and one run
            assert abs(used[item.session] - whole * item.weight / weights) <= slack + weights * QUANTUM_MS


@given(sessions, st.floats(1, 1e6))
def test_idling_saves_nothing(served: list[tuple[Candidate, float]], idle_ms: float) -> None:
    late = Candidate(len(served), "late", 5, "m")
    accounts = Accounts({"late": idle_ms}, {late.session: idle_ms}, "m", MINIMUM_SLICE_MS)
    _, accounts = choose(accounts, [item for item, _ in served])
    assert accounts.owners["late"] <= 0 and accounts.sessions[late.session] <= 0


@given(sessions, st.floats(1, 1e5))
def test_debts_are_kept_while_idle(served: list[tuple[Candidate, float]], debt_ms: float) -> None:
    accounts = Accounts({"late": -debt_ms}, {99: -debt_ms}, "m", MINIMUM_SLICE_MS)
    _, accounts = choose(accounts, [item for item, _ in served])
    assert accounts.owners["late"] == -debt_ms and accounts.sessions[99] == -debt_ms


@settings(max_examples=10)
@given(st.floats(20, 300))
def test_a_model_is_changed_only_after_its_slice(cost: float) -> None:
    waiting = [Candidate(0, "a", 1, "m"), Candidate(1, "b", 1, "n")]
    accounts, order = Accounts(), []
    for _ in range(int(4 * MINIMUM_SLICE_MS / cost) + 4):
        number, accounts = choose(accounts, waiting)
        accounts = charge(accounts, waiting[number], cost)
        order.append(number)
    changes = [i for i in range(1, len(order)) if order[i] != order[i - 1]]
    runs = [after - before for before, after in zip([0, *changes], changes, strict=False)]
    assert changes and all(length * cost >= MINIMUM_SLICE_MS - 1e-6 for length in runs)


def test_a_model_without_work_does_not_hold_the_device() -> None:
    accounts = charge(Accounts(), Candidate(0, "a", 1, "m"), 10)
    number, _ = choose(accounts, [Candidate(1, "b", 1, "n")])
    assert number == 1


def test_closed_accounts_are_forgotten() -> None:
    accounts = Accounts({"a": 1.0, "b": 2.0}, {1: 1.0, 2: 2.0, 3: 3.0})
    accounts = forget(accounts, 1, "a", last_of_owner=False)
    assert accounts.owners == {"a": 1.0, "b": 2.0} and accounts.sessions == {2: 2.0, 3: 3.0}
    assert forget(accounts, 2, "a", last_of_owner=True).owners == {"b": 2.0}
