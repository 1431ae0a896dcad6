"""IPFS is down and the orchestrator is restarted: batches go on with the nodes that were good last."""

from __future__ import annotations

from pathlib import Path

from machines import Machine, Network, label, machines, wait_until
from namespaces import MakeSpaces


def test_batches_run_on_the_last_good_nodes_while_ipfs_and_the_orchestrator_are_down(
    make_spaces: MakeSpaces, tmp_path: Path, ipfs_binary: Path
) -> None:
    with make_spaces(3) as spaces, machines(spaces, tmp_path) as (hub, one, two):
        kubo = hub.start_dim("kubo", "start")
        address = kubo.next()["address"]
        network = Network(hub, "--ipfs", address)
        network.gather([one, two])

        kubo.kill()
        network.orchestrator.kill()
        finished = hub.start_worker(60, 5).result()
        assert finished["right"]
        assert set(finished["nodes"]) == {label(one), label(two)}, "neither IPFS nor an orchestrator"

        network.orchestrator = network.start_orchestrator()
        assert network.state(one) == network.state(two) == "ELIGIBLE", "the restarted one knows what it knew"
        finished = hub.start_worker(60, 5).result()
        assert finished["right"]
        assert set(finished["nodes"]) == {label(one), label(two)}, "an orchestrator without IPFS"

        _restart_with_news(network, one)


def _restart_with_news(network: Network, machine: Machine) -> None:
    """A node that starts anew while IPFS is down is known again: two other roads are left."""
    before = network.rows()[label(machine)].sequence
    network.nodes[machine].kill()
    network.start_node(machine)
    wait_until(lambda: network.rows()[label(machine)].sequence > before, "its newer record came by another road")
    network.wait_for(machine, "ELIGIBLE")
