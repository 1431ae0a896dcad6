"""`dim demo`: real data, a real model and a real run, from nothing, in less than a minute."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dim_pipelines.cli.console import DebugFlag, Exit, JsonFlag, Screen
from dim_pipelines.cli.local import OWNER, IpfsOption, content_store, ipfs_address, local_nodes
from dim_pipelines.errors import DimError

if TYPE_CHECKING:
    from dim_pipelines.cli.demo_digits import Digits
    from dim_pipelines.content.models import ModelPackage
    from dim_pipelines.content.store import ContentStore
    from dim_pipelines.orchestrator.batches import Batches, BatchRow
    from dim_pipelines.settings import Home

app = typer.Typer(help="Demonstrations with real data.", no_args_is_help=True)

_DAGSTER_START_S: Final = 60.0


@app.callback()
def _demo() -> None:
    """Keep `digits` a command of its own while it is the only one."""


@app.command("digits")
def digits(
    ipfs: IpfsOption = "",
    nodes: Annotated[int, typer.Option("--nodes", min=1, max=16, help="Local node daemons to start.")] = 2,
    home: Annotated[
        Path | None, typer.Option("--home", metavar="DIR", help="DIM_HOME of the demo; $DIM_HOME when left out.")
    ] = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Classify 1,797 handwritten digits on local nodes, through Dagster.

    A small network is trained on 900 of them; the accuracy is that on the 897 others.
    """
    from dim_pipelines.settings import Home

    screen = Screen(as_json, debug)
    return asyncio.run(_digits(Home.at(home), ipfs, nodes, screen))


async def _digits(home: Home, ipfs: str, count: int, screen: Screen) -> int:
    from dim_pipelines.cli import demo_digits
    from dim_pipelines.content.models import add_model
    from dim_pipelines.database.engine import open_database
    from dim_pipelines.identity.keys import load_or_create_key
    from dim_pipelines.orchestrator.batches import Batches, submit_batch
    from dim_pipelines.orchestrator.dagster_daemon import add_partition

    folder = home.root / "demo" / "digits"
    screen.say(f"everything goes to {home.root}")
    async with ipfs_address(home, ipfs) as address, content_store(home, address) as store:
        # Training takes one core; the nodes start beside it.
        async with local_nodes(home, count, address, prefix="demo") as running:
            with screen.progress("writing 1,797 digits as PNGs, training a small network on 900 of them"):
                material, images, model = await asyncio.to_thread(_prepare, folder)
                package = await add_model(model, store, load_or_create_key(home.user_key), OWNER)
            screen.say(f"model {demo_digits.MODEL_NAME} {package.cid}: trained, signed with your key")
            output = folder / "predictions.parquet"
            spec = {
                "name": "digits",
                "models": [str(package.cid)],
                "input": {"uri": str(images), "format": "images", "id_column": "path"},
                "shard_rows": demo_digits.SHARD_ROWS,
                "batch_rows": demo_digits.BATCH_ROWS,
            }
            database = await asyncio.to_thread(open_database, home.database_url)
            row = await asyncio.to_thread(submit_batch, database, spec, owner=OWNER, run=False, output=str(output))
            addresses = [node.address for node in running]
            with screen.progress("loading the model on the nodes"):
                # Else the node that has loaded it first would be done before the other begins.
                await asyncio.gather(_warm(addresses, package, store), asyncio.to_thread(add_partition, home, row.id))
            row = await _materialize(home, row, Batches(database), store, address, ",".join(addresses), screen)
        from dim_pipelines.cli.follow import record_of

        record = await record_of(row, store)
    record["accuracy"] = round(await asyncio.to_thread(_accuracy, material, Path(record["output"])), 4)
    screen.result(record, _summary(record, home, ipfs, folder))
    return Exit.DEAD_ROWS if record["dead_rows"] else Exit.DONE


def _prepare(folder: Path) -> tuple[Digits, Path, Path]:
    from dim_pipelines.cli.demo_digits import load_digits, write_images, write_package

    material = load_digits()
    images, _labels = write_images(material, folder)
    return material, images, write_package(material, folder / "model")


async def _warm(addresses: list[str], package: ModelPackage, store: ContentStore) -> None:
    """Load the model on the nodes; what keeps one from it is said by the run, which needs it too."""
    from dim_pipelines.cli.demo_digits import BATCH_ROWS
    from dim_pipelines.dispatch.node_pool import NodePool
    from dim_pipelines.dispatch.warming import warm_nodes

    pool = NodePool(addresses)
    try:
        await warm_nodes(pool, package, store, BATCH_ROWS)
    finally:
        await pool.close()


async def _materialize(
    home: Home, row: BatchRow, batches: Batches, store: ContentStore, ipfs: str, nodes: str, screen: Screen
) -> BatchRow:
    """Run the batch's partition with Dagster's own command, and follow it.

    Raises:
        DimError: the run failed; what it said is in the log.
    """
    from dim_pipelines.cli.follow import follow
    from dim_pipelines.cli.supervise import Child
    from dim_pipelines.orchestrator.dagster_instance import DEFINITIONS, dagster_environment

    command = [sys.executable, "-m", "dagster", "asset", "materialize"]
    command += ["-m", DEFINITIONS, "--select", "*", "--partition", row.id]
    environment = {**os.environ, **dagster_environment(home), "DIM_IPFS": ipfs, "DIM_NODES": nodes}
    dagster = Child("the Dagster run", command, environment, home.logs / f"demo-{row.id}.log")
    await dagster.start()
    assert dagster.process is not None
    ended = asyncio.create_task(dagster.process.wait())
    try:
        with screen.progress("computing through Dagster") as bar:
            following = asyncio.create_task(follow(row.id, batches, store, bar.update, OWNER))
            try:
                await ended
            finally:
                following.cancel()
                with contextlib.suppress(asyncio.CancelledError, DimError):
                    await following
        row = await asyncio.to_thread(batches.get, row.id, owner=OWNER)
        if dagster.process.returncode != 0 or row.state != "done":
            reason = f": {row.error}" if row.error else dagster.last_words()
            raise DimError(f"the Dagster run failed{reason}", hint=f"see {dagster.log}")
        return row
    finally:
        await dagster.stop()


def _accuracy(material: Digits, table: Path) -> float:
    import pyarrow.parquet as pq

    from dim_pipelines.cli.demo_digits import accuracy

    joined = pq.read_table(table, columns=["path", "digit"])
    files = [Path(name).name for name in joined.column("path").to_pylist()]
    return accuracy(material, dict(zip(files, joined.column("digit").to_pylist(), strict=True)))


def _summary(record: dict[str, Any], home: Home, ipfs: str, folder: Path) -> str:
    from dim_pipelines.cli.batch import describe
    from dim_pipelines.cli.demo_digits import BATCH_ROWS, IMAGES, MODEL_NAME, SHARD_ROWS, TRAINED_ON
    from dim_pipelines.settings import Home as _Home

    where = "" if _Home.at().root == home.root else f"DIM_HOME={home.root} "
    store = f" --ipfs {ipfs}" if ipfs and ipfs != "embedded" else ""
    return (
        f"accuracy {record['accuracy']:.1%} on {IMAGES - TRAINED_ON} digits the network had not seen\n"
        f"{describe(record)}\n"
        f"\nnext, Dagster's page with this run in it:\n"
        f"  {where}dim up{store}\n"
        f"or the same without Dagster, which gives the same result:\n"
        f"  {where}dim infer{store} --model {MODEL_NAME} --input {folder / 'images'} --id-column path \\\n"
        f"    --shard-rows {SHARD_ROWS} --batch-rows {BATCH_ROWS} --output digits.parquet"
    )
