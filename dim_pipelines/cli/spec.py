"""A batch's spec from the command line: the options that say it, spec files, paths, and the models it names."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dim_pipelines.cli.local import OWNER
from dim_pipelines.errors import ConfigurationError, InputError

if TYPE_CHECKING:
    from dim_pipelines.cli.console import Screen
    from dim_pipelines.content.store import ContentStore
    from dim_pipelines.domain.batch import BatchSpec
    from dim_pipelines.settings import Home


class RowErrors(StrEnum):
    """What a bad row does."""

    FAIL = "fail"
    DEAD_LETTER = "dead_letter"


ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="PATH|CID|NAME", help="The model; a folder is added and signed first.")
]
InputOption = Annotated[
    str | None, typer.Option("--input", metavar="FILE|FOLDER|CID", help="Parquet, CSV, a folder of images, or a CID.")
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", metavar="FILE", help="The joined table: a .parquet or .csv file.")
]
ColumnsOption = Annotated[
    str | None, typer.Option("--columns", metavar="A,B", help="Columns to keep; those the model reads when left out.")
]
IdColumnOption = Annotated[
    str | None,
    typer.Option("--id-column", metavar="C", help="The column that names rows; else images' paths, or the row number."),
]
ShardRowsOption = Annotated[
    int | None, typer.Option("--shard-rows", min=1, help="Rows per shard; state it where the same CID is wanted again.")
]
BatchRowsOption = Annotated[
    int | None,
    typer.Option("--batch-rows", min=1, help="Rows per micro-batch; state it where the same CID is wanted again."),
]
RowErrorOption = Annotated[
    RowErrors, typer.Option("--on-row-error", help="End the batch at a bad row, or set bad rows aside.")
]


def plain_spec(
    model: str,
    source: str,
    output: Path | None,
    columns: str | None,
    id_column: str | None,
    shard_rows: int | None,
    batch_rows: int | None,
    on_row_error: RowErrors,
) -> dict[str, Any]:
    """Write the options as a spec; what was left out stays out.

    Raises:
        ConfigurationError: the output's ending is neither .parquet nor .csv.
    """
    plain: dict[str, Any] = {
        "name": Path(source.rstrip("/")).stem[:200] or "batch",
        "models": [model],
        "input": {"uri": source},
        "on_row_error": on_row_error.value,
    }
    if columns:
        plain["input"]["columns"] = [part.strip() for part in columns.split(",") if part.strip()]
    if id_column:
        plain["input"]["id_column"] = id_column
    if shard_rows:
        plain["shard_rows"] = shard_rows
    if batch_rows:
        plain["batch_rows"] = batch_rows
    if output is not None:
        ending = output.suffix.lower().removeprefix(".")
        if ending not in ("parquet", "csv"):
            raise ConfigurationError(f"the output {output} ends neither in .parquet nor in .csv", hint="name it so")
        plain["output"] = {"format": ending}
    return _absolute(plain)


def read_spec(path: Path) -> dict[str, Any]:
    """Read a spec file; its relative paths are taken from its own folder.

    Raises:
        InputError: it cannot be read, is no YAML, or no mapping.
    """
    import yaml

    path = path.expanduser()
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no batch spec", hint="it is a mapping with name, models and input")
    return _absolute(value, path.absolute().parent)


def _absolute(plain: dict[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """Make local paths absolute, so that another process with another folder finds them."""
    from dim_pipelines.domain.cid import looks_like_cid

    source = plain.get("input")
    uri = source.get("uri") if isinstance(source, dict) else source
    if isinstance(uri, str) and uri and "://" not in uri and not looks_like_cid(uri):
        resolved = str((folder or Path.cwd()) / Path(uri).expanduser())
        plain = {**plain, "input": {**source, "uri": resolved} if isinstance(source, dict) else resolved}
    return plain


def check_source(uri: str) -> None:
    """Refuse a missing input before anything is started.

    Raises:
        InputError: there is no such file or folder.
    """
    from dim_pipelines.domain.cid import looks_like_cid

    if "://" not in uri and not looks_like_cid(uri) and not Path(uri).exists():
        raise InputError(f"no such file or folder: {uri}", hint="an absolute path is safest; a CID starts with 'baf'")


async def publish_models(spec: BatchSpec, home: Home, store: ContentStore, screen: Screen) -> BatchSpec:
    """Add and sign the models that are given as folders; the spec then names every model by its CID.

    Raises:
        InputError: there is no such folder or model.
    """
    from dim_pipelines.content.models import add_model, find_model
    from dim_pipelines.identity.keys import load_or_create_key

    uses = []
    for use in spec.models:
        folder = model_folder(use.model)
        if folder is not None:
            package = await add_model(folder, store, load_or_create_key(home.user_key), OWNER)
            screen.say(f"model {package.description.name} {package.cid}")
        else:
            package = await find_model(use.model, store, OWNER)
        uses.append(use.model_copy(update={"model": str(package.cid)}))
    return spec.model_copy(update={"models": tuple(uses)})


def model_folder(reference: str) -> Path | None:
    """Give the folder that a reference names, or None where it is a CID or a name.

    Raises:
        InputError: it is written as a path, and there is no such folder.
    """
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return folder
    if "/" in reference.removeprefix("ipfs://").removeprefix("/ipfs/") or reference.startswith((".", "~")):
        raise InputError(f"no such model folder: {reference}", hint="name the folder that holds dim-model.json")
    return None
