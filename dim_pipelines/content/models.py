"""Model packages: added, found, listed and verified. The registry is the pins.

A package is a UnixFS folder with `dim-model.json`; its CID is its identity. `model/NAME` pins the folder,
`signature/CID` a detached signature over it. Nothing here parses a program: a `.pt2` stays bytes.
"""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import Collection, Container
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.content.files import read_bytes
from dim_pipelines.content.folders import add_folder, list_folder, tree_blocks
from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.content.store import BATCH_LIFETIME_S, Block, ContentStore, Pin
from dim_pipelines.content.transforms import check_transforms
from dim_pipelines.domain.cid import DAG_CBOR, Cid, looks_like_cid
from dim_pipelines.domain.grant import Signature
from dim_pipelines.domain.model import DESCRIPTION_FILE, ModelDescription
from dim_pipelines.errors import ConfigurationError, ContentError, DimError, Forbidden, InputError
from dim_pipelines.identity.keys import format_public_key
from dim_pipelines.identity.signatures import MODEL_DOMAIN, sign, verify

ENGINES: Final = ("torch", "echo")
"""The engines there are."""
MAX_DESCRIPTION_BYTES: Final = 1 << 20
"""The largest `dim-model.json`."""
_CODE_SUFFIXES: Final = frozenset(
    {".py", ".pyc", ".so", ".dll", ".dylib", ".sh", ".pkl", ".pickle", ".pt", ".pth", ".joblib"}
)
"""Files that a package may not hold: they are programs, or pickles, which are programs too."""


@dataclass(frozen=True, slots=True)
class ModelPackage:
    """A package and what is known of it.

    Attributes:
        cid: the folder's CID.
        description: its `dim-model.json`.
        signatures: CIDs of detached signatures over `cid`.
    """

    cid: Cid
    description: ModelDescription
    signatures: tuple[Cid, ...] = ()


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A package in the registry; `description` is None where the package cannot be read, `problem` says why."""

    cid: Cid
    owner: str
    name: str
    description: ModelDescription | None
    problem: str = ""

    @property
    def version(self) -> str:
        """The package's version; empty where the package cannot be read."""
        return self.description.version if self.description else ""


def read_package(folder: Path) -> tuple[ModelDescription, dict[str, Path]]:
    """Check a package on disk; give its description and its files by name in the package.

    Raises:
        InputError: no folder, no or a wrong description, a missing file, a link, or a file that may not be there.
        ConfigurationError: no such engine.
    """
    if not folder.is_dir():
        raise InputError(
            f"there is no model package {folder}", hint=f"a model package is a folder with {DESCRIPTION_FILE}"
        )
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise InputError(f"{path} is a link, a model package holds plain files only")
        if path.is_file():
            files[name] = path
        elif not path.is_dir():
            raise InputError(f"{path} is not a plain file")
    if DESCRIPTION_FILE not in files:
        raise InputError(f"{folder} has no {DESCRIPTION_FILE}", hint="it says what the model takes and gives")
    try:
        data = files[DESCRIPTION_FILE].read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {files[DESCRIPTION_FILE]}: {error.strerror}") from error
    description = ModelDescription.from_json(data)
    check_description(description, files)
    return description, files


def check_description(description: ModelDescription, files: Collection[str]) -> None:
    """Check a description against the files of its package.

    Raises:
        InputError: a file is missing, or is a program or a pickle, a step is unknown, or the licence is empty.
        ConfigurationError: no such engine.
    """
    where = f"model {description.name}"
    if description.engine not in ENGINES:
        near = difflib.get_close_matches(description.engine, ENGINES, n=1)
        raise ConfigurationError(
            f"{where}: unknown engine {description.engine!r}",
            hint=f"did you mean {near[0]!r}?" if near else f"engines: {', '.join(ENGINES)}",
        )
    if not description.licence.strip():
        raise InputError(f"{where}: the licence is empty", hint="an SPDX expression, for example Apache-2.0")
    code = next((name for name in files if PurePosixPath(name).suffix.lower() in _CODE_SUFFIXES), None)
    if code is not None:
        raise InputError(
            f"{where}: {code} is a program or a pickle",
            hint="a model package holds data and .pt2 files: export with torch.export.save",
        )
    for role, name in description.files.items():
        if name not in files:
            raise InputError(f"{where}: the file {name!r} ({role}) is not in the package")
    program = description.files.get("program")
    if description.engine == "torch" and (program is None or not program.endswith(".pt2")):
        raise InputError(f"{where}: the torch engine wants files.program, a .pt2")
    if description.engine == "torch" and not description.outputs:
        raise InputError(f"{where}: outputs are missing")
    check_transforms(description)


async def add_model(folder: Path, store: ContentStore, key: Ed25519PrivateKey, owner: str = "local") -> ModelPackage:
    """Check, store, sign and pin a package. The same bytes are the same package.

    A package of the same owner, name and version that was there before gives way to this one in the registry;
    its content and signatures stay for `BATCH_LIFETIME_S`, for batches that name it by CID and have not begun.

    Raises:
        InputError, ConfigurationError: as `read_package`.
        ContentError: the store fails.
    """
    description, files = await asyncio.to_thread(read_package, folder)
    pin = Pin(owner, f"model/{description.name}")
    cid = await add_folder(store, dict(files), pin=pin)
    signature = sign(key, MODEL_DOMAIN, cid).encode()
    signature_cid = Cid.of(DAG_CBOR, signature)
    await store.put([Block(signature_cid, signature)])
    await store.pin(signature_cid, Pin(owner, f"signature/{cid}"))
    for listed in await list_models(store):
        if (
            (listed.owner, listed.name) == (owner, description.name)
            and listed.cid != cid
            and (listed.description is None or listed.description.version == description.version)
        ):
            ends = int((time.time() + BATCH_LIFETIME_S) * 1000)
            await store.pin(listed.cid, replace(pin, expires_ms=ends))
            for old in await _signatures(store, listed.cid, owner):
                await store.pin(old, Pin(owner, f"signature/{listed.cid}", ends))
    await store.sync()
    return ModelPackage(cid, description, await _signatures(store, cid, owner))


async def find_model(reference: str, store: ContentStore, owner: str = "local") -> ModelPackage:
    """Find a package.

    Args:
        reference: its CID, its name, `NAME@VERSION`, or the path of a folder that was added before.
        store: where to look.
        owner: whose registry.

    Raises:
        ConfigurationError: there is no such model (the nearest name is given), or several are meant.
        Forbidden: it is a program that nobody signed.
        InputError: the package is malformed.
        ContentError: it cannot be read.
    """
    if looks_like_cid(reference):
        cid = Cid.parse(reference)
    elif "/" in reference or await asyncio.to_thread(Path(reference).is_dir):
        cid = await _cid_of(Path(reference))
        if cid not in {listed for listed, _ in await store.pins("model/")}:
            raise Forbidden(f"the model package {reference} was not added yet", hint=f"dim model add {reference}")
    else:
        cid = await _named(reference, store, owner)
    description = await read_description(store, cid)
    package = ModelPackage(cid, description, await _signatures(store, cid, owner))
    if description.engine == "torch" and not await _signers(store, package):
        raise Forbidden(
            f"the model {description.name} ({cid}) is a program without a valid signature",
            hint="dim model add FOLDER signs it with your key",
        )
    return package


async def list_models(store: ContentStore) -> list[ListedModel]:
    """List the registry by name, version and CID; a package that cannot be read is listed with the reason."""
    found = []
    for cid, pin in await store.pins("model/"):
        if pin.expires_ms is not None:
            continue  # a newer package has its place
        name = pin.label.removeprefix("model/")
        try:
            found.append(ListedModel(cid, pin.owner, name, await read_description(store, cid)))
        except DimError as error:
            found.append(ListedModel(cid, pin.owner, name, None, error.message))
    return sorted(
        found, key=lambda model: (model.name, model.description.version if model.description else "", model.cid)
    )


async def read_description(store: ContentStore, cid: Cid) -> ModelDescription:
    """Read and check the description of a package in the store.

    Raises:
        InputError: the CID is no package, or its description is wrong.
        ConfigurationError: no such engine.
        ContentError: it cannot be read.
    """
    files = await list_folder(store, cid)
    if DESCRIPTION_FILE not in files:
        raise InputError(f"{cid} is not a model package: it has no {DESCRIPTION_FILE}")
    data = await read_bytes(store, files[DESCRIPTION_FILE], limit=MAX_DESCRIPTION_BYTES)
    description = ModelDescription.from_json(data)
    check_description(description, files)
    return description


async def verify_model(cid: Cid, store: ContentStore, trusted: Container[bytes]) -> list[str]:
    """Read every block of a package again and check its signatures.

    Args:
        cid: the package.
        store: where it is.
        trusted: public keys of publishers (32 bytes each).

    Returns: what is wrong, a line each; nothing when all is well.
    """
    problems: list[str] = []
    try:
        wanted = [block async for block in tree_blocks(store, cid)]
    except (ContentError, InputError) as error:
        return [error.message]
    for block in wanted:
        try:
            await store.get(block)
        except ContentError as error:
            problems.append(error.message)
    try:
        description = await read_description(store, cid)
    except DimError as error:
        return list(dict.fromkeys([*problems, error.message]))
    package = ModelPackage(cid, description, await _signatures(store, cid, None))
    signers = await _signers(store, package)
    if not package.signatures:
        problems.append("nobody signed it")
    elif len(signers) < len(package.signatures):
        problems.append("a signature is not valid")
    if signers and not any(signer in trusted for signer in signers):
        problems.append(f"no signer is trusted: {', '.join(sorted(format_public_key(signer) for signer in signers))}")
    return problems


async def _signatures(store: ContentStore, cid: Cid, owner: str | None) -> tuple[Cid, ...]:
    label = f"signature/{cid}"
    pins = await store.pins(label)
    return tuple(sorted({root for root, pin in pins if pin.label == label and owner in (None, pin.owner)}))


async def _signers(store: ContentStore, package: ModelPackage) -> list[bytes]:
    """Give the public keys of the valid signatures."""
    signers = []
    for cid in package.signatures:
        try:
            signature = Signature.decode(await store.get(cid))
            signers.append(verify(signature, MODEL_DOMAIN, package.cid))
        except (Forbidden, InputError, ContentError):
            continue  # counted by the callers: fewer signers than signatures
    return signers


async def _named(reference: str, store: ContentStore, owner: str) -> Cid:
    name, _, version = reference.partition("@")
    models = [model for model in await list_models(store) if model.owner == owner]
    found = [
        model
        for model in models
        if model.name == name
        and (not version or (model.description is not None and model.description.version == version))
    ]
    if len(found) == 1:
        return found[0].cid
    if found:
        choices = ", ".join(f"{model.name}@{model.version}" if model.version else str(model.cid) for model in found)
        raise ConfigurationError(f"several models are called {reference!r}", hint=f"say which: {choices}")
    names = sorted({model.name for model in models})
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "dim model list shows what there is, dim model add FOLDER adds one"
    raise ConfigurationError(f"there is no model {reference!r}", hint=hint)


async def _cid_of(folder: Path) -> Cid:
    """Name a package on disk without storing it."""
    _, files = await asyncio.to_thread(read_package, folder)
    return await add_folder(_NamingStore(), dict(files))


class _NamingStore(MemoryContentStore):
    """Forgets every block: what stays is the CID."""

    async def put(self, blocks: object, *, pin: Pin | None = None) -> None:
        """Take blocks and keep none."""
