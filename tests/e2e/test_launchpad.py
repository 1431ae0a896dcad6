"""A person submits a batch from the launchpad of `dim up` and looks at what came of it, in a real browser.

The screenshots stay in `out/e2e/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from playwright.sync_api import Page

OUTPUT = Path(__file__).parents[2] / "out" / "e2e"


def _launch(up: Any, page: Page, config: dict[str, Any]) -> None:
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


@pytest.mark.timeout(600)
def test_a_batch_from_the_launchpad_shows_its_picture_preview_and_checks(up: Any, page: Page) -> None:
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
