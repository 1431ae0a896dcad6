"""`dim model`: add, list, show and verify model packages. The registry is the store's pins."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dim_pipelines.cli.console import DebugFlag, Exit, JsonFlag, Screen
from dim_pipelines.cli.local import OWNER, IpfsOption, PublicFlag, content_store

if TYPE_CHECKING:
    from dim_pipelines.content.models import ListedModel, ModelPackage

app = typer.Typer(help="Model packages: add, list, show, verify.", no_args_is_help=True)

_Reference = Annotated[str, typer.Argument(metavar="REF", help="A CID, a name, or name@version.")]


@app.command("add")
def add(
    path: Annotated[Path, typer.Argument(help="The folder that holds dim-model.json.")],
    ipfs: IpfsOption = "",
    public: PublicFlag = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Add a folder as a model package and sign it with your key."""
    screen = Screen(as_json, debug)
    package = asyncio.run(_add(path.expanduser(), ipfs, public))
    screen.result(_record(package), f"{package.description.name}@{package.description.version}  {package.cid}")
    return Exit.DONE


async def _add(path: Path, ipfs: str, public: bool) -> ModelPackage:
    from dim_pipelines.content.models import add_model
    from dim_pipelines.identity.keys import load_or_create_key
    from dim_pipelines.settings import Home

    home = Home.at()
    async with content_store(home, ipfs, public=public) as store:
        package = await add_model(path, store, load_or_create_key(home.user_key), OWNER)
        await store.sync()
    return package


@app.command("list")
def list_(ipfs: IpfsOption = "", as_json: JsonFlag = False, debug: DebugFlag = False) -> int:
    """List the models of this home."""
    screen = Screen(as_json, debug)
    models = asyncio.run(_list(ipfs))
    if not models and not as_json:
        screen.say("no models yet: dim model add FOLDER")
        return Exit.DONE
    engines = [model.description.engine if model.description else model.problem for model in models]
    rows = [(model.name, model.version, engine, model.cid) for model, engine in zip(models, engines, strict=True)]
    records = [
        {"name": model.name, "version": model.version, "cid": str(model.cid), "owner": model.owner}
        | ({"engine": model.description.engine} if model.description else {"problem": model.problem})
        for model in models
    ]
    screen.table(("name", "version", "engine", "cid"), rows, {"models": records})
    return Exit.DONE


async def _list(ipfs: str) -> list[ListedModel]:
    from dim_pipelines.content.models import list_models
    from dim_pipelines.settings import Home

    async with content_store(Home.at(), ipfs) as store:
        return await list_models(store)


@app.command("show")
def show(reference: _Reference, ipfs: IpfsOption = "", as_json: JsonFlag = False, debug: DebugFlag = False) -> int:
    """Show what a model's dim-model.json says."""
    screen = Screen(as_json, debug)
    package = asyncio.run(_find(reference, ipfs))
    text = package.description.to_json().decode().rstrip()
    screen.result(_record(package), f"{package.cid}\n{text}")
    return Exit.DONE


async def _find(reference: str, ipfs: str) -> ModelPackage:
    from dim_pipelines.content.models import find_model
    from dim_pipelines.settings import Home

    async with content_store(Home.at(), ipfs) as store:
        return await find_model(reference, store, OWNER)


@app.command("verify")
def verify(reference: _Reference, ipfs: IpfsOption = "", as_json: JsonFlag = False, debug: DebugFlag = False) -> int:
    """Read every byte of a model again, and check its hashes and signatures against the keys you trust."""
    screen = Screen(as_json, debug)
    cid, problems = asyncio.run(_verify(reference, ipfs))
    record = {"cid": cid, "ok": not problems, "problems": problems}
    screen.result(record, f"{cid}: " + ("good" if not problems else "; ".join(problems)))
    return Exit.DONE if not problems else Exit.FAILED


async def _verify(reference: str, ipfs: str) -> tuple[str, list[str]]:
    from dim_pipelines.content.models import find_model, verify_model
    from dim_pipelines.domain.cid import Cid, looks_like_cid
    from dim_pipelines.identity.keys import load_or_create_key, public_bytes
    from dim_pipelines.identity.trust import load_trust
    from dim_pipelines.settings import Home

    home = Home.at()
    trust = load_trust(home.trusted).including(public_bytes(load_or_create_key(home.user_key)))
    async with content_store(home, ipfs) as store:
        known = looks_like_cid(reference)
        cid = Cid.parse(reference) if known else (await find_model(reference, store, OWNER)).cid
        return str(cid), list(await verify_model(cid, store, trust.publishers))


def _record(package: ModelPackage) -> dict[str, Any]:
    description = package.description.model_dump(mode="json", exclude_none=True)
    return {"cid": str(package.cid), "signatures": [str(cid) for cid in package.signatures], "description": description}
