"""A machine that takes no connection from outside is a full member: it joins, computes, and outlives its relay."""

from __future__ import annotations

from pathlib import Path

from machines import Network, label, machines, wait_until
from namespaces import MakeSpaces

ROWS = 320


def test_a_machine_that_only_dials_out_joins_and_computes_and_outlives_its_orchestrator(
    make_spaces: MakeSpaces, tmp_path: Path
) -> None:
    with make_spaces(2, delay_ms=2) as spaces, machines(spaces, tmp_path) as (hub, inside):
        inside.space.refuse_inbound()
        network = Network(hub)
        network.gather([inside])
        relay = network.orchestrator.lines[0]["name"]
        wait_until(lambda: network.rows()[label(inside)].relay == relay, "the orchestrator relays to it")
        assert network.rows()[label(inside)].reach == "attached"
        assert inside.dim("doctor")["broken"] == 0

        worker = hub.start_worker(ROWS, 60)
        wait_until(lambda: any(line.get("done") for line in worker.lines), "the batch computes")
        network.orchestrator.kill()
        done = sum("done" in line for line in worker.lines)
        assert done < ROWS / 2, "it was killed in mid-batch"
        network.orchestrator = network.start_orchestrator()
        finished = worker.result()
        assert finished["right"]
        assert finished["nodes"] == {label(inside): ROWS // 2}
