from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.content.folders import add_folder, list_folder
from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.content.models import (
    add_model,
    check_description,
    find_model,
    list_models,
    read_description,
    read_package,
    verify_model,
)
from dim_pipelines.content.store import Block, Pin
from dim_pipelines.domain.cid import DAG_CBOR, RAW, Cid
from dim_pipelines.domain.grant import Signature
from dim_pipelines.errors import ConfigurationError, ContentMismatch, ContentNotFound, DimError, Forbidden, InputError
from dim_pipelines.identity.keys import public_bytes
from dim_pipelines.identity.signatures import MODEL_DOMAIN, sign, verify

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))

DESCRIPTION: dict[str, Any] = {
    "name": "digits",
    "version": "1",
    "engine": "torch",
    "files": {"program": "digits.pt2"},
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [4]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [2]}],
    "licence": "Apache-2.0",
}


def package(folder: Path, content: bytes = b"program", **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dim-model.json").write_text(json.dumps(DESCRIPTION | changes))
    (folder / "digits.pt2").write_bytes(content)
    return folder


@pytest.fixture
def store() -> MemoryContentStore:
    return MemoryContentStore()


async def test_an_added_package_is_found_by_cid_name_version_and_path(
    store: MemoryContentStore, tmp_path: Path
) -> None:
    added = await add_model(package(tmp_path / "m"), store, KEY)
    for reference in (str(added.cid), f"ipfs://{added.cid}", "digits", "digits@1", str(tmp_path / "m")):
        assert await find_model(reference, store) == added
    assert added.description.name == "digits"
    assert set(await list_folder(store, added.cid)) == {"dim-model.json", "digits.pt2"}


async def test_an_added_package_is_signed_and_held(store: MemoryContentStore, tmp_path: Path) -> None:
    added = await add_model(package(tmp_path), store, KEY, "ada")
    (cid,) = added.signatures
    assert verify(Signature.decode(await store.get(cid)), MODEL_DOMAIN, added.cid) == public_bytes(KEY)
    assert {(root, pin.owner, pin.label, pin.expires_ms) for root, pin in await store.pins()} == {
        (added.cid, "ada", "model/digits", None),
        (cid, "ada", f"signature/{added.cid}", None),
    }
    assert await verify_model(added.cid, store, {public_bytes(KEY)}) == []


async def test_adding_twice_is_adding_once(store: MemoryContentStore, tmp_path: Path) -> None:
    assert await add_model(package(tmp_path), store, KEY) == await add_model(package(tmp_path), store, KEY)
    assert len(await list_models(store)) == 1


async def test_a_second_signature_joins_the_first(store: MemoryContentStore, tmp_path: Path) -> None:
    await add_model(package(tmp_path), store, KEY)
    added = await add_model(package(tmp_path), store, STRANGER)
    assert len(added.signatures) == 2


async def test_new_content_of_one_version_takes_its_place(store: MemoryContentStore, tmp_path: Path) -> None:
    old = await add_model(package(tmp_path), store, KEY)
    new = await add_model(package(tmp_path, b"better"), store, KEY)
    assert old.cid != new.cid
    assert (await find_model("digits", store)).cid == new.cid
    assert [listed.cid for listed in await list_models(store)] == [new.cid]
    lasting = {pin.label for _, pin in await store.pins() if pin.expires_ms is None}
    assert lasting == {"model/digits", f"signature/{new.cid}"}


async def test_a_batch_that_names_a_replaced_package_finds_it(store: MemoryContentStore, tmp_path: Path) -> None:
    old = await add_model(package(tmp_path), store, KEY)
    await add_model(package(tmp_path, b"better"), store, KEY)
    await store.collect(int(time.time() * 1000), grace_s=0)
    assert await find_model(str(old.cid), store) == old
    again = await add_model(package(tmp_path), store, KEY)
    assert [listed.cid for listed in await list_models(store)] == [again.cid] == [old.cid]


async def test_versions_stand_side_by_side(store: MemoryContentStore, tmp_path: Path) -> None:
    one = await add_model(package(tmp_path), store, KEY)
    two = await add_model(package(tmp_path, version="2"), store, KEY)
    assert (await find_model("digits@1", store)).cid == one.cid
    assert (await find_model("digits@2", store)).cid == two.cid
    assert [(listed.name, listed.version, listed.owner) for listed in await list_models(store)] == [
        ("digits", "1", "local"),
        ("digits", "2", "local"),
    ]
    with pytest.raises(ConfigurationError, match="several models are called 'digits'") as caught:
        await find_model("digits", store)
    assert caught.value.hint == "say which: digits@1, digits@2"


async def test_each_owner_has_a_registry(store: MemoryContentStore, tmp_path: Path) -> None:
    await add_model(package(tmp_path), store, KEY, "ada")
    with pytest.raises(ConfigurationError, match="there is no model 'digits'"):
        await find_model("digits", store, "bob")


@pytest.mark.parametrize(
    ("reference", "hint"),
    [("digts", "did you mean 'digits'?"), ("digits@9", "did you mean 'digits'?"), ("zzz", "dim model list shows")],
)
async def test_an_unknown_name_gives_the_nearest(
    store: MemoryContentStore, tmp_path: Path, reference: str, hint: str
) -> None:
    await add_model(package(tmp_path), store, KEY)
    with pytest.raises(ConfigurationError, match=f"there is no model '{reference}'") as caught:
        await find_model(reference, store)
    assert caught.value.hint.startswith(hint)


async def test_a_package_that_was_not_added_is_forbidden(store: MemoryContentStore, tmp_path: Path) -> None:
    with pytest.raises(Forbidden, match="was not added yet") as caught:
        await find_model(str(package(tmp_path / "m")), store)
    assert caught.value.hint == f"dim model add {tmp_path / 'm'}"
    assert not await store.pins()
    with pytest.raises(InputError, match="there is no model package"):
        await find_model(str(tmp_path / "none"), store)


async def test_a_program_that_nobody_signed_is_forbidden(store: MemoryContentStore, tmp_path: Path) -> None:
    _, files = read_package(package(tmp_path))
    cid = await add_folder(store, dict(files))
    with pytest.raises(Forbidden, match="without a valid signature") as caught:
        await find_model(str(cid), store)
    assert "dim model add" in caught.value.hint
    assert await verify_model(cid, store, ()) == ["nobody signed it"]


async def pin_signature(store: MemoryContentStore, cid: Cid, data: bytes, *, put: bool = True) -> None:
    signature = Cid.of(DAG_CBOR, data)
    if put:
        await store.put([Block(signature, data)])
    await store.pin(signature, Pin("local", f"signature/{cid}"))


async def test_a_wrong_signature_is_as_good_as_none(store: MemoryContentStore, tmp_path: Path) -> None:
    _, files = read_package(package(tmp_path))
    cid = await add_folder(store, dict(files))
    good = sign(KEY, MODEL_DOMAIN, cid)
    wrong = [
        good.model_copy(update={"signature": bytes(64)}).encode(),
        sign(KEY, "dim/grant/1", cid).encode(),
    ]
    for data in wrong:
        await pin_signature(store, cid, data)
    with pytest.raises(Forbidden, match="without a valid signature"):
        await find_model(str(cid), store)
    assert await verify_model(cid, store, {public_bytes(KEY)}) == ["a signature is not valid"]
    await pin_signature(store, cid, good.encode())
    assert len((await find_model(str(cid), store)).signatures) == 3


async def test_an_echo_model_needs_no_signature(store: MemoryContentStore, tmp_path: Path) -> None:
    _, files = read_package(package(tmp_path, engine="echo", files={}))
    cid = await add_folder(store, dict(files))
    assert (await find_model(str(cid), store)).signatures == ()


async def test_verify_names_what_is_missing_altered_or_not_trusted(store: MemoryContentStore, tmp_path: Path) -> None:
    added = await add_model(package(tmp_path, b"program"), store, KEY)
    assert len(await verify_model(added.cid, store, {public_bytes(STRANGER)})) == 1
    assert "no signer is trusted: ed25519:" in (await verify_model(added.cid, store, ()))[0]
    program = (await list_folder(store, added.cid))["digits.pt2"]
    get = store.get

    async def altered(cid: Cid) -> bytes:
        if cid == program:
            raise ContentMismatch(f"the bytes found for block {cid} are not what it names")
        return await get(cid)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "get", altered)
        assert await verify_model(added.cid, store, {public_bytes(KEY)}) == [
            f"the bytes found for block {program} are not what it names"
        ]
    del store._blocks[program]
    (problem,) = await verify_model(added.cid, store, {public_bytes(KEY)})
    assert str(program) in problem
    description = (await list_folder(store, added.cid))["dim-model.json"]
    del store._blocks[description]
    problems = await verify_model(added.cid, store, {public_bytes(KEY)})
    assert all(any(str(cid) in problem for problem in problems) for cid in (description, program))
    del store._blocks[added.cid]
    (problem,) = await verify_model(added.cid, store, {public_bytes(KEY)})
    assert str(added.cid) in problem


async def test_a_package_that_cannot_be_read_is_listed_with_the_reason(
    store: MemoryContentStore, tmp_path: Path
) -> None:
    added = await add_model(package(tmp_path), store, KEY)
    del store._blocks[added.cid]
    (listed,) = await list_models(store)
    assert (listed.cid, listed.description, listed.version) == (added.cid, None, "")
    assert str(added.cid) in listed.problem
    with pytest.raises(ContentNotFound):
        await find_model("digits", store)


async def test_what_is_no_package_is_an_input_error(store: MemoryContentStore) -> None:
    cid = await add_folder(store, {"readme.txt": b"x"})
    with pytest.raises(InputError, match=r"is not a model package: it has no dim-model\.json"):
        await read_description(store, cid)
    assert "is not a model package" in (await verify_model(cid, store, ()))[0]
    with pytest.raises(DimError):
        await read_description(store, Cid.of(RAW, b"x"))


@pytest.mark.parametrize(
    ("changes", "error", "message", "hint"),
    [
        ({"engine": "tourch"}, ConfigurationError, "model digits: unknown engine 'tourch'", "did you mean 'torch'?"),
        ({"engine": "zzz"}, ConfigurationError, "model digits: unknown engine 'zzz'", "engines: torch, echo"),
        ({"licence": " "}, InputError, "the licence is empty", "an SPDX expression"),
        ({"files": {"program": "a.pt2"}}, InputError, "the file 'a.pt2' (program) is not in the package", ""),
        ({"files": {"program": "../digits.pt2"}}, InputError, "the file '../digits.pt2' (program) is not in", ""),
        ({"files": {}}, InputError, "the torch engine wants files.program, a .pt2", ""),
        ({"files": {"program": "dim-model.json"}}, InputError, "the torch engine wants files.program, a .pt2", ""),
        ({"outputs": []}, InputError, "outputs are missing", ""),
        ({"postprocess": [{"op": "argmx"}]}, InputError, "unknown step 'argmx'", "did you mean 'argmax'?"),
        ({"naem": "x"}, InputError, "dim-model.json, naem: Extra inputs", ""),
        ({"v": 2}, InputError, "dim-model.json has version 2", ""),
    ],
)
async def test_a_wrong_description_is_refused_before_anything_is_stored(
    store: MemoryContentStore,
    tmp_path: Path,
    changes: dict[str, Any],
    error: type[DimError],
    message: str,
    hint: str,
) -> None:
    with pytest.raises(error) as caught:
        await add_model(package(tmp_path, **changes), store, KEY)
    assert message in caught.value.message
    assert caught.value.hint.startswith(hint)
    assert not store._blocks


@pytest.mark.parametrize("name", ["weights.pkl", "model.pt", "run.py", "sub/lib.SO"])
async def test_programs_and_pickles_are_refused(store: MemoryContentStore, tmp_path: Path, name: str) -> None:
    path = package(tmp_path) / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    with pytest.raises(InputError, match="is a program or a pickle"):
        await add_model(tmp_path, store, KEY)


def test_links_and_other_things_are_refused(tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.write_text("x")
    folder = package(tmp_path / "m")
    (folder / "data").symlink_to(outside)
    with pytest.raises(InputError, match="data is a link"):
        read_package(folder)
    (folder / "data").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(InputError, match="pipe is not a plain file"):
        read_package(folder)


def test_a_folder_without_a_readable_description_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"has no dim-model\.json"):
        read_package(tmp_path)
    package(tmp_path)

    def refused(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(InputError, match=r"cannot read .*dim-model\.json: Permission denied"):
        read_package(tmp_path)


def test_files_in_folders_are_part_of_a_package(tmp_path: Path) -> None:
    (package(tmp_path) / "tokens").mkdir()
    (tmp_path / "tokens" / "vocabulary.txt").write_text("a")
    description, files = read_package(tmp_path)
    assert sorted(files) == ["digits.pt2", "dim-model.json", "tokens/vocabulary.txt"]
    check_description(description, files)
