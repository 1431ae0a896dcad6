"""Machines in network namespaces, or a clear reason why there are none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the tests of this folder share modules

if TYPE_CHECKING:
    from namespaces import MakeSpaces


@pytest.fixture(scope="session")
def make_spaces(require: Callable[[bool, str, str], None], require_tool: Callable[[str], Path]) -> MakeSpaces:
    """Give `namespaces(count, …)`, where this machine can make them."""
    from namespaces import namespaces, why_not

    require(not why_not(), why_not() or "namespaces", "run as root on Linux with /dev/net/tun")
    for tool in ("ip", "nft", "nsenter"):
        require_tool(tool)
    return namespaces
