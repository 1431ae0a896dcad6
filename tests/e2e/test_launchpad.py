"""A person submits a batch from the launchpad of `dim up` and looks at what came of it, in a real browser.

The screenshots stay in `out/e2e/`.
"""

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
import yaml

from dim_pipelines.cli.demo_digits import load_digits, write_images, write_package
from dim_pipelines.content.embedded import EmbeddedContentStore
from dim_pipelines.content.models import add_model
from dim_pipelines.database.engine import open_database
from dim_pipelines.identity.keys import load_or_create_key
from dim_pipelines.orchestrator.batches import Batches, BatchRow
from dim_pipelines.settings import Home

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "out" / "e2e"
UNTIL_MS = 90_000
"""How long the browser waits for something to be there."""


@dataclass
class Up:
    """A running `dim up` with the digits on disk and their model in the store."""

    home: Home
    page: str
    images: Path

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
            said = process.stdout.readline()
            assert said, process.stderr.read().decode()
            yield Up(home, json.loads(said)["page"], images)
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
        yield opened
        browser.close()


def _launch(up: Up, page: Page, config: dict[str, Any]) -> None:
    """Put the configuration into the launchpad's editor and press its button."""
    page.goto(f"{up.page}/locations/dim/jobs/new_batch/playground")
    editor = page.locator(".CodeMirror").first
    # the page first fills in the job's own example
    page.locator(".CodeMirror-line", has_text="submit").wait_for()
    text = yaml.safe_dump({"ops": {"submit": {"config": config}}})
    editor.evaluate("(element, text) => element.CodeMirror.setValue(text)", text)
    button = page.get_by_role("button", name="Launch Run")
    page.locator(".CodeMirror-line", has_text="digits-cnn").wait_for()
    page.get_by_role("button", name="Launch Run", disabled=False).wait_for()
    page.screenshot(path=OUTPUT / "1-launchpad.png")
    button.click()
    page.wait_for_url("**/runs/**")


@pytest.mark.timeout(300)
def test_a_batch_from_the_launchpad_shows_its_picture_preview_and_checks(up: Up, page: Page) -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    foreign: list[str] = []
    page.on("request", lambda r: None if r.url.startswith((up.page, "data:", "blob:")) else foreign.append(r.url))
    config = {"model": "digits-cnn", "input": str(up.images), "name": "digits", "shard_rows": 64, "batch_rows": 16}
    _launch(up, page, config)
    row = up.batch()
    assert row.state == "done", row.error

    page.goto(f"{up.page}/assets/results?view=partitions&partition={row.id}")
    for text in ("dim/preview", "confidence", str(row.result), "Apache-2.0"):
        page.get_by_text(text).first.wait_for()
    page.screenshot(path=OUTPUT / "2-results.png")
    page.get_by_text("[Show Markdown]").first.click()
    picture = page.locator("img[src^='data:image/png']").first
    picture.wait_for()
    assert picture.evaluate("image => image.complete && image.naturalWidth") == 720
    page.screenshot(path=OUTPUT / "3-picture.png")

    page.goto(f"{up.page}/assets/results?view=checks")
    for check in ("rows_in_equal_rows_out", "result_is_retrievable"):
        page.get_by_text(check).first.wait_for()
    page.get_by_text("Passed", exact=True).first.wait_for()
    assert page.get_by_text("Succeeded", exact=True).count() == 2
    page.screenshot(path=OUTPUT / "4-checks.png")

    page.goto(f"{up.page}/runs/{row.run_id}")
    page.get_by_text("RUN_SUCCESS").first.wait_for()
    page.screenshot(path=OUTPUT / "5-run.png")
    assert foreign == []
