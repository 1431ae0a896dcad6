"""`dim network` and `dim orchestrator` as people type them: from nothing to a network, and what can go wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dim_pipelines.cli.console import Exit
from dim_pipelines.domain.ipns import ipns_name

Dim = Callable[..., Any]


@contextmanager
def orchestrator(home: Path, *options: str) -> Iterator[dict[str, Any]]:
    """Run `dim orchestrator start` in a process of its own, and give what it announced."""
    command = [sys.executable, "-m", "dim_pipelines.cli", "orchestrator", "start", "--json", "--home", str(home)]
    with (home / "orchestrator.err").open("ab") as log:
        process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=log, env=os.environ)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, (home / "orchestrator.err").read_text()
        yield json.loads(line)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (home / "orchestrator.err").read_text()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a network whose orchestrator runs."""
    from dim_pipelines.cli import main

    home = tmp_path_factory.mktemp("network")
    assert main(["network", "init", "--home", str(home), "--label", "first", "--json"]) == Exit.DONE
    with orchestrator(home):
        yield home


def test_a_network_from_nothing(network: Path, dim: Dim, tmp_path: Path) -> None:
    invited = dim("network", "invite", "--home", network, "--owner", "ada", "--json")
    assert invited.code == Exit.DONE and invited.record["roles"] == ["node"]
    joined = dim("network", "join", invited.record["invite"], "--home", tmp_path, "--label", "gpu", "--json")
    assert joined.code == Exit.DONE, joined.err
    roster = dim("network", "roster", "--home", network, "--json").record
    members = {each["label"]: each for each in roster["members"]}
    assert members["gpu"]["name"] == joined.record["name"] and members["gpu"]["owner"] == "ada"
    assert members["first"]["roles"] == ["orchestrator", "run_host", "publisher", "user"]
    assert members["first"]["doors"] == invited.record["doors"]
    listed = dim("orchestrator", "list", "--home", tmp_path, "--json").record["orchestrators"]
    assert [(each["label"], each["answer"]) for each in listed] == [("first", "yes")]
    # Keys and certificates are their owner's only, and no secret of the network but the swarm's is in the new home.
    for path in (*network.glob("keys/*"), *tmp_path.glob("keys/*"), *tmp_path.glob("network/*.key")):
        assert path.stat().st_mode & 0o077 == 0, path
    assert not {"root.key", "admission.key"} & {path.name for path in tmp_path.glob("keys/*")}

    revoked = dim("network", "revoke", "gpu", "--reason", "stolen", "--home", network, "--json")
    assert revoked.code == Exit.DONE and revoked.record["name"] == joined.record["name"]
    said = dim("network", "roster", "--home", network).out
    assert "revoked: stolen" in said
    back = dim("network", "invite", "--home", network, "--json").record["invite"]
    again = dim("network", "join", back, "--home", tmp_path)
    assert again.code == Exit.FAILED and "stolen" in again.err  # a revoked key stays out, even with a new invite
    other = dim("network", "join", back, "--home", tmp_path / "other")
    assert other.code == Exit.DONE, other.err  # which was not used up by that


def test_what_is_wrong_with_an_invite_is_said_in_one_line(network: Path, dim: Dim, tmp_path: Path) -> None:
    invite = dim("network", "invite", "--home", network, "--json").record["invite"]
    assert dim("network", "join", invite, "--home", tmp_path / "a").code == Exit.DONE
    for text, said in (
        (invite, "used before"),
        (invite[:-9], "cut short"),
        (invite[:40] + ("A" if invite[40] != "A" else "B") + invite[41:], "a character is wrong"),
        ("hello", "no invite"),
    ):
        refused = dim("network", "join", text, "--home", tmp_path / "b")
        assert refused.code == Exit.FAILED and said in refused.err, refused.err
        assert refused.err.count("\n") == 2 and "hint: " in refused.err
    assert not (tmp_path / "b" / "network" / "network.json").exists()


def test_a_key_is_admitted_by_hand_and_changed(network: Path, dim: Dim) -> None:
    name = ipns_name(b"k" * 32)
    admitted = dim(
        "network", "admit", name, "--role", "publisher", "--label", "models", "--max-sessions", 2, "--home", network
    )
    assert admitted.code == Exit.DONE and "publisher" in admitted.out
    assert dim("network", "admit", name, "--role", "user", "--role", "publisher", "--home", network).code == Exit.DONE
    members = dim("network", "roster", "--home", network, "--json").record["members"]
    (entry,) = [each for each in members if each["name"] == name]
    assert (entry["roles"], entry["label"]) == (["user", "publisher"], "models")
    assert dim("network", "revoke", name, "--home", network).code == Exit.DONE


def test_mistakes_at_the_command_line(network: Path, dim: Dim, tmp_path: Path) -> None:
    for words, said in (
        (["network", "init", "--home", network], "in a network already"),
        (["network", "roster", "--home", tmp_path / "x"], "in no network"),
        (["network", "invite", "--home", tmp_path / "x"], "in no network"),
        (["network", "invite", "--role", "king", "--home", network], "not a role: 'king'"),
        (["network", "admit", "nonsense", "--home", network], "not an IPNS name"),
        (["network", "revoke", "nobody", "--home", network], "no member is called 'nobody'"),
        (["network", "revoke", "first", "--home", network], "cannot revoke itself"),
        (["network", "init", "--renew", "--root-key", tmp_path / "gone", "--home", network], "no root key"),
        (["orchestrator", "start", "--home", tmp_path / "x"], "in no network"),
        (["orchestrator", "start", "--home", network], "an orchestrator runs in"),
        (["orchestrator", "list", "--home", tmp_path / "x"], "in no network"),
    ):
        refused = dim(*words)
        assert refused.code in (Exit.USAGE, Exit.FAILED) and said in refused.err, (words, refused.err)
        assert "Traceback" not in refused.err


def test_the_root_key_may_lie_elsewhere_and_lets_this_home_sign_on(dim: Dim, tmp_path: Path) -> None:
    home, safe = tmp_path / "home", tmp_path / "safe.key"
    dim("network", "init", "--home", home)
    (home / "keys" / "root.key").rename(safe)
    before = dim("network", "roster", "--home", home, "--json").record
    renewed = dim("network", "init", "--renew", "--root-key", safe, "--home", home, "--json")
    assert renewed.code == Exit.DONE and renewed.record["version"] == before["version"] + 1
    assert renewed.record["not_after_ms"] > before["signed_until_ms"]
    no_door = dim("network", "invite", "--home", home)
    assert no_door.code == Exit.USAGE and "no door" in no_door.err and "dim orchestrator start" in no_door.err
    assert not (home / "keys" / "root.key").exists()


def test_an_orchestrator_on_all_addresses_needs_to_be_told_which(dim: Dim, tmp_path: Path) -> None:
    dim("network", "init", "--home", tmp_path)
    refused = dim("orchestrator", "start", "--listen", "0.0.0.0:0", "--home", tmp_path)
    assert refused.code == Exit.USAGE and "--advertise HOST" in refused.err
    with orchestrator(tmp_path, "--listen", "0.0.0.0:0", "--door", "0.0.0.0:0", "--advertise", "127.0.0.2") as said:
        assert said["address"].startswith("127.0.0.2:") and said["door"].startswith("127.0.0.2:")
        assert said["address"] != said["door"]
        listed = dim("orchestrator", "list", "--home", tmp_path, "--json").record["orchestrators"]
        assert listed[0]["answer"] == "yes"
