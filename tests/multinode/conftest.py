"""Machines in network namespaces, or a clear reason why there are none."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

TIMEOUT_S = 1800 if os.environ.get("DIM_CHAOS") == "1" else 400

sys.path.insert(0, str(Path(__file__).parent))  # the tests of this folder share modules

if TYPE_CHECKING:
    from namespaces import MakeSpaces


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give these tests the time that a dozen processes take to start on a busy machine."""
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@pytest.fixture(scope="session")
def make_spaces(require: Callable[[bool, str, str], None], require_tool: Callable[[str], Path]) -> MakeSpaces:
    """Give `namespaces(count, …)`, where this machine can make them."""
    from namespaces import namespaces, why_not

    require(not why_not(), why_not() or "namespaces", "run as root on Linux with /dev/net/tun")
    for tool in ("ip", "nft", "nsenter"):
        require_tool(tool)
    return namespaces
