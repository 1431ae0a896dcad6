"""A running `dim up`, and a real browser; the screenshots stay in `out/e2e/`."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dim_pipelines.cli.demo_digits import load_digits, write_images, write_package
from dim_pipelines.content.embedded import EmbeddedContentStore
from dim_pipelines.content.models import add_model
from dim_pipelines.database.engine import open_database
from dim_pipelines.identity.keys import load_or_create_key
from dim_pipelines.orchestrator.batches import Batches, BatchRow
from dim_pipelines.settings import Home

if TYPE_CHECKING:
    from playwright.sync_api import Page

OUTPUT = Path(__file__).parents[2] / "out" / "e2e"
UNTIL_MS = 180_000
"""How long the browser waits for something to be there."""


@dataclass
class Up:
    """A running `dim up` with the digits on disk and their model in the store."""

    home: Home
    page: str
    images: Path
    said: dict[str, Any]

    def batch(self) -> BatchRow:
        """Give the newest batch, once its report is written."""
        database = open_database(self.home.database_url)
        until = time.monotonic() + UNTIL_MS / 1000
        try:
            while True:
                rows = Batches(database).list(limit=1)
                if rows and (rows[0].output or rows[0].state == "failed"):
                    return rows[0]
                assert time.monotonic() < until, f"the batch does not end: {rows}"
                time.sleep(0.2)
        finally:
            database.close()

    def dim(self, *arguments: object, home: Path | None = None) -> dict[str, Any]:
        """Give a command and read the object that it prints."""
        command = [sys.executable, "-m", "dim_pipelines.cli", *map(str, arguments), "--json"]
        environment = {**os.environ, "DIM_HOME": str(home or self.home.root)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert isinstance(said, dict)
        return said


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    home = Home.at(tmp_path / "home")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "dim_pipelines.cli", "up", "--nodes", "2", "--port", str(port), "--json"]
    environment = {**os.environ, "DIM_HOME": str(home.root)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            digits = load_digits()  # while the processes start
            images, _ = write_images(digits, tmp_path / "digits")
            _add_model(home, write_package(digits, tmp_path / "package"))
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            assert line, process.stderr.read().decode()
            said = json.loads(line)
            yield Up(home, said["page"], images, said)
        finally:
            process.terminate()
            process.communicate(timeout=60)
    assert process.returncode == 0


def _add_model(home: Home, package: Path) -> None:
    async def add() -> None:
        store = await EmbeddedContentStore.open(home.store)
        try:
            await add_model(package, store, load_or_create_key(home.user_key))
        finally:
            await store.close()

    asyncio.run(add())


@pytest.fixture
def page(require_tool: Callable[[str], Path], require: Callable[[bool, str, str], None]) -> Iterator[Page]:
    binary = require_tool("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        require(False, "playwright", "pip install playwright")
        raise
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1400, "height": 1200})
        opened.set_default_timeout(UNTIL_MS)
        OUTPUT.mkdir(parents=True, exist_ok=True)
        yield opened
        browser.close()
