"""Commands about batches: `dim infer` runs one here, `dim submit` hands one over, `dim resume` continues one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dim_pipelines.cli.console import DebugFlag, Exit, JsonFlag, Screen, explain
from dim_pipelines.cli.local import OWNER, IpfsOption, PublicFlag, content_store, ipfs_address
from dim_pipelines.cli.spec import (
    BatchRowsOption,
    ColumnsOption,
    IdColumnOption,
    InputOption,
    ModelOption,
    OutputOption,
    RowErrorOption,
    RowErrors,
    ShardRowsOption,
    check_source,
    plain_spec,
    publish_models,
    read_spec,
)
from dim_pipelines.errors import ConfigurationError, InputError

if TYPE_CHECKING:
    from dim_pipelines.content.store import ContentStore
    from dim_pipelines.orchestrator.batches import Batches, BatchRow
    from dim_pipelines.settings import Home

HEARTBEAT_LOST_S: Final = 15.0
"""A running batch whose row nobody has written for this long has no run any more, in seconds: three heartbeats."""


NodesOption = Annotated[
    str | None,
    typer.Option(
        "--nodes",
        metavar="ADDR,ADDR|network",
        help="Nodes to use: at these addresses, or those of this home's network; one is started here when left out.",
    ),
]


def infer(
    model: ModelOption = None,
    source: InputOption = None,
    output: OutputOption = None,
    columns: ColumnsOption = None,
    id_column: IdColumnOption = None,
    shard_rows: ShardRowsOption = None,
    batch_rows: BatchRowsOption = None,
    on_row_error: RowErrorOption = RowErrors.FAIL,
    ipfs: IpfsOption = "",
    public: PublicFlag = False,
    nodes: NodesOption = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Run a model over a file or folder, here and now, without a server."""
    screen = Screen(as_json, debug)
    if model is None or source is None or output is None:
        missing = [
            name for name, value in (("--model", model), ("--input", source), ("--output", output)) if value is None
        ]
        raise ConfigurationError(f"missing {', '.join(missing)}", hint="dim infer --help")
    spec = plain_spec(model, source, output, columns, id_column, shard_rows, batch_rows, on_row_error)
    return asyncio.run(_infer(spec, output, ipfs, public, _addresses(nodes), screen))


async def _infer(plain: dict[str, Any], output: Path, ipfs: str, public: bool, nodes: list[str], screen: Screen) -> int:
    from dim_pipelines.cli.here import check_output
    from dim_pipelines.database.engine import open_database
    from dim_pipelines.domain.batch import BatchSpec
    from dim_pipelines.orchestrator.batches import Batches, submit_batch
    from dim_pipelines.settings import Home

    path = check_output(output)
    home = Home.at()
    spec = BatchSpec.read(plain)
    check_source(spec.input.uri)
    async with ipfs_address(home, ipfs) as address, content_store(home, address, public=public) as store:
        spec = await publish_models(spec, home, store, screen)
        database = await asyncio.to_thread(open_database, home.database_url)
        row = await asyncio.to_thread(submit_batch, database, spec, owner=OWNER, run=False, output=str(path))
        return await _run_row(row, home, Batches(database), store, address, nodes, path, screen, public)


async def _run_row(
    row: BatchRow,
    home: Home,
    batches: Batches,
    store: ContentStore,
    ipfs: str,
    nodes: list[str],
    output: Path,
    screen: Screen,
    public: bool,
) -> int:
    """Run a batch here, and leave its row saying how it went."""
    from dim_pipelines.cli.here import holder, run_here

    try:
        done = await run_here(
            row,
            home=home,
            batches=batches,
            store=store,
            ipfs=ipfs,
            nodes=nodes,
            output=output,
            screen=screen,
            public=public,
        )
    except asyncio.CancelledError:
        batches.cancel(row.id, holder=holder())
        screen.say(f"finished shards are kept; to continue: dim resume {row.id}")
        raise
    except Exception as error:
        batches.fail(row.id, explain(error).message, holder=holder())
        raise
    record = done.record()
    screen.result(record, describe(record))
    return Exit.DEAD_ROWS if done.finished.dead_rows else Exit.DONE


def submit(
    spec_file: Annotated[
        Path | None, typer.Argument(metavar="SPEC.yaml", help="The batch as a file; or say it with the options.")
    ] = None,
    model: ModelOption = None,
    source: InputOption = None,
    output: OutputOption = None,
    columns: ColumnsOption = None,
    id_column: IdColumnOption = None,
    shard_rows: ShardRowsOption = None,
    batch_rows: BatchRowsOption = None,
    on_row_error: RowErrorOption = RowErrors.FAIL,
    no_run: Annotated[
        bool,
        typer.Option("--no-run", help="Only write it down and add its Dagster partition; somebody else starts it."),
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Stay until it is done; Ctrl-C only stops watching.")
    ] = True,
    ipfs: IpfsOption = "",
    public: PublicFlag = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Hand a batch to Dagster, which runs under `dim up`."""
    screen = Screen(as_json, debug)
    if spec_file is not None:
        if model or source or columns or id_column or shard_rows or batch_rows or on_row_error is not RowErrors.FAIL:
            raise ConfigurationError("give either SPEC.yaml or --model and --input, not both", hint="dim submit --help")
        plain = read_spec(spec_file)
    elif model is not None and source is not None:
        plain = plain_spec(model, source, output, columns, id_column, shard_rows, batch_rows, on_row_error)
    else:
        raise ConfigurationError("nothing to submit", hint="dim submit SPEC.yaml, or --model … --input …")
    return asyncio.run(_submit(plain, output, ipfs, public, no_run, wait, screen))


async def _submit(
    plain: dict[str, Any], output: Path | None, ipfs: str, public: bool, no_run: bool, wait: bool, screen: Screen
) -> int:
    from dim_pipelines.cli.here import check_output
    from dim_pipelines.database.engine import open_database
    from dim_pipelines.domain.batch import BatchSpec
    from dim_pipelines.orchestrator.batches import Batches, submit_batch
    from dim_pipelines.orchestrator.running import find_running
    from dim_pipelines.settings import Home

    path = None if output is None else str(check_output(output))
    home = Home.at()
    spec = BatchSpec.read(plain)
    check_source(spec.input.uri)
    running = find_running(home)
    async with content_store(home, ipfs, public=public) as store:
        spec = await publish_models(spec, home, store, screen)
        database = await asyncio.to_thread(open_database, home.database_url)
        row = await asyncio.to_thread(submit_batch, database, spec, owner=OWNER, run=not no_run, output=path)
        if no_run:
            from dim_pipelines.orchestrator.dagster_daemon import add_partition

            await asyncio.to_thread(add_partition, home, row.id)
            return _say_submitted(row, screen, _how_to_start(home, row.id))
        if running is None:
            screen.say("dim up is not running for this home: the batch starts when it does")
            return _say_submitted(row, screen, "dim up")
        if not wait:
            return _say_submitted(row, screen, f"watch it at {running.page}/assets/results")
        screen.say(f"batch {row.id}, see {running.page}/assets/results")
        return await _wait(row.id, Batches(database), store, screen)


def _say_submitted(row: BatchRow, screen: Screen, following: str) -> int:
    screen.result({"batch": row.id, "state": row.state, "next": following}, f"{row.id}\nnext: {following}")
    return Exit.DONE


def _how_to_start(home: Home, batch: str) -> str:
    return (
        f"DIM_HOME={home.root} DAGSTER_HOME={home.dagster} dagster asset materialize "
        f"-m dim_pipelines.definitions --select '*' --partition {batch}"
    )


async def _wait(batch: str, batches: Batches, store: ContentStore, screen: Screen) -> int:
    from dim_pipelines.cli.follow import await_table, follow, missing_nodes, record_of
    from dim_pipelines.settings import Home

    why = await asyncio.to_thread(missing_nodes, Home.at())
    try:
        with screen.progress("batch") as bar:
            row = await follow(batch, batches, store, bar.update, OWNER, why=why, wait=bar.wait)
        with screen.progress("waiting for the table"):
            row = await await_table(row, batches)
    except asyncio.CancelledError:
        screen.say(f"batch {batch} goes on without you; to stop it, terminate its run on Dagster's page")
        raise
    record = await record_of(row, store)
    screen.result(record, describe(record))
    return Exit.DEAD_ROWS if record["dead_rows"] else Exit.DONE


def resume(
    batch: Annotated[str, typer.Argument(metavar="BATCH", help="The batch's id.")],
    here: Annotated[bool, typer.Option("--here", help="Run it in this process, whoever ran it before.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Stay until it is done; Ctrl-C only stops watching.")
    ] = True,
    output: OutputOption = None,
    ipfs: IpfsOption = "",
    public: PublicFlag = False,
    nodes: NodesOption = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Continue a batch whose last run has ended: finished shards are not computed again.

    A batch that Dagster ran is asked for again there; one that `dim infer` ran is run here and now.
    """
    screen = Screen(as_json, debug)
    return asyncio.run(_resume(batch, here, wait, output, ipfs, public, _addresses(nodes), screen))


async def _resume(
    batch: str, here: bool, wait: bool, output: Path | None, ipfs: str, public: bool, nodes: list[str], screen: Screen
) -> int:
    from dim_pipelines.cli.follow import record_of
    from dim_pipelines.cli.here import check_output
    from dim_pipelines.database.engine import open_database
    from dim_pipelines.orchestrator.batches import Batches
    from dim_pipelines.orchestrator.running import find_running
    from dim_pipelines.settings import Home

    home = Home.at()
    batches = Batches(await asyncio.to_thread(open_database, home.database_url))
    row = await asyncio.to_thread(batches.get, batch, owner=OWNER)
    async with ipfs_address(home, ipfs) as address, content_store(home, address, public=public) as store:
        if row.state == "done":
            record = await record_of(row, store)
            screen.result(record, f"batch {batch} is done already\n{describe(record)}")
            return Exit.DEAD_ROWS if record["dead_rows"] else Exit.DONE
        if row.state == "running":
            await _outwait(row, batches, screen)
        running = find_running(home)
        if here or (row.run_id is None and row.request == 0 and row.state != "queued"):
            path = check_output(output or Path(row.output or home.outputs / f"{batch}.{row.spec.output.format}"))
            return await _run_row(row, home, batches, store, address, nodes, path, screen, public)
        row = await asyncio.to_thread(batches.resume, batch, owner=OWNER)
        if running is None:
            return _say_submitted(row, screen, f"dim up, or run it in this process: dim resume {batch} --here")
        if not wait:
            return _say_submitted(row, screen, f"watch it at {running.page}/assets/results")
        return await _wait(batch, batches, store, screen)


async def _outwait(row: BatchRow, batches: Batches, screen: Screen) -> None:
    """Return once the row's last run has lost its heartbeat.

    Raises:
        InputError: the run lives.
    """
    import time

    seen = row.updated_ms
    said = False
    while (left := seen / 1000 + HEARTBEAT_LOST_S - time.time()) > 0:
        if not said:
            screen.say(f"the last run ({row.holder}) gave a sign of life just now; waiting {left:.0f} s for another")
            said = True
        await asyncio.sleep(min(left, 1.0))
        now = await asyncio.to_thread(batches.get, row.id, owner=OWNER)
        if now.state != "running":
            return
        if now.updated_ms > seen:
            raise InputError(f"batch {row.id} is running ({now.holder})", hint="wait for it, or stop that run first")


def _addresses(nodes: str | None) -> list[str]:
    return [part.strip() for part in (nodes or "").split(",") if part.strip()]


def describe(record: dict[str, Any]) -> str:
    """Say how a batch went, for people."""
    shares = ", ".join(f"{name} {count}" for name, count in record["nodes"].items())
    dead = f", {record['dead_rows']:,} bad rows set aside" if record["dead_rows"] else ""
    resumed = f" ({record['resumed_shards']} from before)" if record["resumed_shards"] else ""
    return (
        f"{record['rows']:,} rows in {record['seconds']:.1f} s ({record['rows_per_s']:,.0f} rows/s){dead}\n"
        f"shards  {record['shards']}{resumed}: {shares}\n"
        f"result  {record['result_cid']}\n"
        f"table   {record['output']}\n"
        f"batch   {record['batch']}"
    )
