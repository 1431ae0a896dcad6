from __future__ import annotations

from pathlib import Path

import pytest

from dim_pipelines.cli.local import ipfs_address, node_homes
from dim_pipelines.errors import ConfigurationError
from dim_pipelines.orchestrator.running import Running, announce, find_running
from dim_pipelines.settings import Home


def test_node_homes_are_lent_once_at_a_time_and_used_again(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    with node_homes(home, 2) as first:
        with node_homes(home, 1) as second:
            assert not set(first) & set(second)
        names = [path.name for path in first]
    with node_homes(home, 2) as again:
        assert [path.name for path in again] == names


def test_what_runs_is_found_while_it_runs(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    running = Running(1, "/ip4/127.0.0.1/tcp/5001", "http://127.0.0.1:3000", ("unix:/a",))
    assert find_running(home) is None
    with announce(home) as tell:
        assert find_running(home) is None
        tell(running)
        assert find_running(home) == running
    assert find_running(home) is None


def test_a_file_left_by_a_killed_process_is_passed_over(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    with announce(home) as tell:
        tell(Running(1, "embedded", "http://x"))
        left = (tmp_path / "up.json").read_bytes()
    (tmp_path / "up.json").write_bytes(left)
    assert find_running(home) is None


def test_a_home_has_one_dim_up(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    with (
        announce(home) as tell,
        pytest.raises(ConfigurationError, match=r"dim up runs already .*process 7, http://127\.0\.0\.1:3000"),
    ):
        tell(Running(7, "embedded", "http://127.0.0.1:3000"))
        with announce(home):
            pass


async def test_a_store_left_out_is_that_of_dim_up_else_embedded(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    async with ipfs_address(home, "") as address:
        assert address == "embedded"
    with announce(home) as tell:
        tell(Running(1, "/ip4/127.0.0.1/tcp/5001", "http://x"))
        async with ipfs_address(home, "") as address:
            assert address == "/ip4/127.0.0.1/tcp/5001"
        async with ipfs_address(home, "embedded") as address:
            assert address == "embedded"
