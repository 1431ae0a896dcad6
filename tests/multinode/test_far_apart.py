"""Machines 40 ms and 1 % of loss apart compute what one machine computes, to the last bit."""

from __future__ import annotations

from pathlib import Path

from machines import CHAOS, Network, label, machines
from namespaces import MakeSpaces

NODES = 10 if CHAOS else 3
ROWS = 400


def test_many_far_machines_give_the_same_result_as_one(make_spaces: MakeSpaces, tmp_path: Path) -> None:
    with (
        make_spaces(1 + NODES, delay_ms=20, loss=0.01, seed=11) as spaces,
        machines(spaces, tmp_path) as (hub, *others),
    ):
        network = Network(hub)
        network.gather(others[:1])
        alone = hub.start_worker(ROWS, 60, 4).result()
        network.gather(others[1:])
        together = hub.start_worker(ROWS, 60, 4).result()
        counters = spaces.line()
        assert alone["right"] and together["right"]
        assert alone["nodes"] == {label(others[0]): ROWS // 4}
        assert together["result"] == alone["result"]
        assert together["nodes"].keys() == {label(machine) for machine in others}, "each took part"
        print(f"alone {alone['seconds']:.1f} s, {NODES} machines {together['seconds']:.1f} s; {counters}")
        assert counters["lost"] > 0
