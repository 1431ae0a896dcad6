"""How `make tools` chooses where the `ipfs` program comes from; the programs here are shell scripts."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import platform
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = Path(__file__).resolve().parents[3] / "deployment" / "kubo"


@pytest.fixture
def fetch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kubo_fetch", SOURCE / "fetch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def program(version: str) -> bytes:
    return f'#!/bin/sh\n[ "$1" = version ] && echo {version}\n'.encode()


def write_program(path: Path, version: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(program(version))
    path.chmod(0o755)
    return path


@pytest.fixture
def no_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("reported", "good"),
    [("0.43.0", True), ("0.43.1", True), ("0.43.0-dev", True), ("0.42.0", False), ("0.44.0", False), ("word", False)],
)
def test_versions(fetch: ModuleType, tmp_path: Path, reported: str, good: bool) -> None:
    assert fetch.is_good(write_program(tmp_path / "ipfs", reported)) is good


def test_a_missing_program_is_not_good(fetch: ModuleType, tmp_path: Path) -> None:
    assert not fetch.is_good(tmp_path / "ipfs")


def test_a_good_program_on_path_is_linked(fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = write_program(tmp_path / "old" / "ipfs", "0.30.0")
    good = write_program(tmp_path / "good" / "ipfs", "0.43.0")
    monkeypatch.setenv("PATH", f"{old.parent}:{good.parent}")
    fetch.fetch(SOURCE, tmp_path / "tools")
    assert (tmp_path / "tools" / "bin" / "ipfs").resolve() == good


@pytest.mark.usefixtures("no_path")
def test_a_program_put_there_by_hand_stays(fetch: ModuleType, tmp_path: Path) -> None:
    place = write_program(tmp_path / "tools" / "bin" / "ipfs", "0.43.0")
    assert "already there" in fetch.fetch(SOURCE, tmp_path / "tools")
    assert not place.is_symlink()


@pytest.mark.usefixtures("no_path")
def test_what_was_made_is_kept_by_its_recipe(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "download", lambda: program("0.43.0"))
    assert "archive" in fetch.fetch(SOURCE, tmp_path)
    monkeypatch.setattr(fetch, "download", lambda: pytest.fail("fetched twice"))
    assert "already made" in fetch.fetch(SOURCE, tmp_path)
    monkeypatch.setattr(fetch, "recipe_hash", lambda folder: "another")
    monkeypatch.setattr(fetch, "download", lambda: program("0.43.9"))
    assert "archive" in fetch.fetch(SOURCE, tmp_path)
    assert fetch.version_of(tmp_path / "bin" / "ipfs") == (0, 43, 9)


@pytest.mark.usefixtures("no_path")
def test_each_way_that_fails_is_named(fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "BASE_URL", tmp_path.as_uri())
    monkeypatch.setattr(fetch, "download", lambda: program("0.12.0"))
    with pytest.raises(fetch.Unavailable, match=r"archive: .*does not run as Kubo.*Go: there is no Go"):
        fetch.fetch(SOURCE, tmp_path / "tools")
    assert not list((tmp_path / "tools").glob("kubo/*/*"))


def test_an_archive_is_taken_only_with_its_pinned_hash(fetch: ModuleType, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as files:
        member = tarfile.TarInfo("kubo/ipfs")
        member.size = len(program("0.43.0"))
        files.addfile(member, io.BytesIO(program("0.43.0")))
    archive = tmp_path / "v0.43.0" / "kubo_v0.43.0_here.tar.gz"
    archive.parent.mkdir()
    archive.write_bytes(packed.getvalue())
    machine = (platform.system(), platform.machine())
    right = {machine: ("here", hashlib.sha512(packed.getvalue()).hexdigest())}
    assert fetch.download(tmp_path.as_uri(), right) == program("0.43.0")
    with pytest.raises(fetch.Unavailable, match="SHA-512"):
        fetch.download(tmp_path.as_uri(), {machine: ("here", "0" * 128)})
    with pytest.raises(fetch.Unavailable, match="cannot be fetched"):
        fetch.download((tmp_path / "nowhere").as_uri(), right)
    with pytest.raises(fetch.Unavailable, match="no archive is pinned"):
        fetch.download(tmp_path.as_uri(), {})
