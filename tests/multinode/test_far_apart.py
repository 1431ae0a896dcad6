"""Machines 40 ms and 1 % of loss apart compute what one machine computes, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from machines import CHAOS, Machine, Network, label, machines
from namespaces import MakeSpaces

NODES = 10 if CHAOS else 3
RUNS = 4
COPIES = 5
Compute = Callable[[], dict[str, Any]]


def test_many_far_machines_give_the_same_result_as_one(make_spaces: MakeSpaces, tmp_path: Path) -> None:
    with (
        make_spaces(1 + NODES, delay_ms=20, loss=0.01, seed=1) as spaces,
        machines(spaces, tmp_path) as (hub, *others),
    ):
        network = Network(hub)
        compute = _digits(hub, tmp_path) if CHAOS else _numbers(hub)
        engine = "torch" if CHAOS else "echo"
        network.gather(others[:1], engine=engine)
        alone = compute()
        network.gather(others[1:], engine=engine)
        assert alone["nodes"].keys() == {label(others[0])}
        took_part: set[str] = set()
        for _ in range(RUNS):  # a machine that still loads the model while others finish takes part the next time
            before = spaces.line()
            together = compute()
            counters = spaces.line()
            print(f"alone {alone['seconds']:.1f} s, {NODES} machines {together['seconds']:.1f} s: {together['nodes']}")
            print(f"{counters['packets'] - before['packets']} packets, {counters['lost'] - before['lost']} lost")
            assert together["result"] == alone["result"]
            took_part |= together["nodes"].keys()
            if len(took_part) > NODES / 2:
                break
        assert len(took_part) > NODES / 2, "most took part"
        assert took_part <= {label(machine) for machine in others}
        assert counters["lost"] > 0


def _numbers(hub: Machine) -> Compute:
    def compute() -> dict[str, Any]:
        finished = hub.start_worker(320, 50, 4).result()
        assert finished["right"]
        return finished

    return compute


def _digits(hub: Machine, folder: Path) -> Compute:
    """The demonstration's images and network, as `dim infer` runs them."""
    from dim_pipelines.cli.demo_digits import BATCH_ROWS, SHARD_ROWS, load_digits, write_images, write_package

    digits = load_digits()
    images, _ = write_images(digits, folder / "digits")
    for image in sorted(images.iterdir()):  # one pass over them ends before a far machine has loaded the model
        for copy in range(1, COPIES):
            (images / f"{copy}-{image.name}").write_bytes(image.read_bytes())
    model = write_package(digits, folder / "model")
    sizes = ("--shard-rows", SHARD_ROWS, "--batch-rows", BATCH_ROWS)

    def compute() -> dict[str, Any]:
        options = ("--model", model, "--input", images, "--output", folder / "digits.parquet", "--nodes", "network")
        done = hub.dim("infer", *options, *sizes, deadline_s=300)
        return {**done, "result": done["result_cid"]}

    return compute
