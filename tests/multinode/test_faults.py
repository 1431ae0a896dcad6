"""A node is lost in mid-batch, in each way a node can be lost: others do its tasks, and the network knows it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from machines import CHAOS, Daemon, Machine, Network, label, machines, wait_until
from namespaces import MakeSpaces

COPIED_S = 4.0
SUSPECT_S = 12.0
ROWS = 2000 if CHAOS else 500
SLEEP_MS = 60


@pytest.fixture(scope="module")
def network(
    make_spaces: MakeSpaces, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Network, list[Machine]]]:
    with make_spaces(5, delay_ms=2) as spaces, machines(spaces, tmp_path_factory.mktemp("faults")) as (hub, *others):
        made = Network(hub)
        made.gather(others)
        yield made, others


def kill(node: Daemon, machine: Machine) -> None:
    node.signal(signal.SIGKILL)


def freeze(node: Daemon, machine: Machine) -> None:
    node.signal(signal.SIGSTOP)


def thaw(node: Daemon, machine: Machine) -> None:
    node.signal(signal.SIGCONT)


def cut(node: Daemon, machine: Machine) -> None:
    machine.space.cut()


def mend(node: Daemon, machine: Machine) -> None:
    machine.space.mend()


@dataclass(frozen=True)
class Story:
    """What a run worker told, and when the fault was."""

    lines: list[dict[str, Any]]
    lost: str
    at: float

    def copied_s(self) -> float:
        """How long after the fault the last task that the lost node had was somewhere else (0: it had none)."""
        taken = [line for line in self.lines if "taken" in line]
        done = {line["done"]: line["at"] for line in self.lines if "done" in line}
        here = {line["taken"] for line in taken if line["node"] == self.lost and line["at"] <= self.at}
        open_ = {shard for shard in here if done[shard] > self.at}
        copies = dict.fromkeys(open_, self.at)
        for line in taken:
            if line["taken"] in open_ and line["node"] != self.lost and line["at"] >= self.at:
                copies[line["taken"]] = max(copies[line["taken"]], line["at"])
        return max((when - self.at for when in copies.values()), default=0.0)


@pytest.mark.parametrize(
    ("victim", "fault", "end"),
    [(0, kill, None), (1, freeze, thaw), (2, cut, mend)],
    ids=["kill -9", "SIGSTOP", "a cut network"],
)
def test_a_node_is_lost_in_mid_batch(
    network: tuple[Network, list[Machine]],
    victim: int,
    fault: Callable[[Daemon, Machine], None],
    end: Callable[[Daemon, Machine], None] | None,
) -> None:
    made, others = network
    machine = others[victim]
    worker = made.hub.start_worker(ROWS, SLEEP_MS)
    wait_until(lambda: _has_done(worker, label(machine), 5), "the node takes part in the batch")
    at = time.time()
    fault(made.nodes[machine], machine)
    made.wait_for(machine, "SUSPECT")
    suspect_s = time.time() - at
    finished = worker.result()
    assert finished["right"], "every row exactly once, with its own answer"
    assert sum(finished["nodes"].values()) == ROWS // 2
    assert finished["nodes"].get(label(machine), 0) < ROWS // 2 / 3, "the others did what it left"
    copied_s = Story(worker.lines, label(machine), at).copied_s()
    reason = made.rows()[label(machine)].reason
    print(f"its tasks elsewhere after {copied_s:.1f} s, SUSPECT after {suspect_s:.1f} s: {reason}")
    assert reason
    if CHAOS:
        assert copied_s <= COPIED_S
        assert suspect_s <= SUSPECT_S
        ends_ms = made.rows()[label(machine)].expires_ms
        made.wait_for(machine, "GONE", 240)
        assert -1 <= time.time() - ends_ms / 1000 <= 10, "it is GONE at the end of its record"
    if end is not None:
        end(made.nodes[machine], machine)
        made.wait_for(machine, "ELIGIBLE", 120)


def _has_done(worker: Daemon, node: str, tasks: int) -> bool:
    assert worker.process.poll() is None, worker.last_words()
    return sum(line.get("node") == node for line in worker.lines) >= tasks
