"""What all tests share: real components or a clear reason why not, an environment of their own, and the time budgets.

A test that needs a real program asks the fixture `require_tool` for it. Where the program is missing the test
is skipped with the command that brings it; with `CI=true` it fails instead, so that nothing is skipped there.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
IN_CI = os.environ.get("CI") == "true"

# One profile for all property tests: no deadline, because a busy machine is no bug; in CI the same examples in
# every run, so that a failure can be repeated; and a failure prints what repeats it.
settings.register_profile("dim", deadline=None, derandomize=IN_CI, print_blob=True)
settings.load_profile("dim")

TOOLS = {
    "ipfs": (("ipfs",), "make tools"),
    "chromium": (("chromium", "chromium-browser", "google-chrome"), "apt-get install -y chromium"),
    "go": (("go",), "see https://go.dev/dl"),
    "ip": (("ip",), "apt-get install -y iproute2"),
    "nft": (("nft",), "apt-get install -y nftables"),
    "nsenter": (("nsenter",), "apt-get install -y util-linux"),
}
"""Real programs: the names they go by, and the command that brings them."""

BUDGET_S = {
    "unit": 360.0,
    "contracts": 90.0,
    "golden": 20.0,
    "integration": 1200.0,
    "fuzz": 60.0,
    "multinode": 450.0,
    "e2e": 450.0,
}
"""Seconds that the tests of a folder may take in CI, set-up included, summed over the two workers that `make test`
runs. About twice what a quiet machine takes (ten minutes of wall time in all), so that only growth fails a run and
not a busy neighbour."""

_spent_s: dict[str, float] = defaultdict(float)


def pytest_configure(config: pytest.Config) -> None:
    """Keep the tests out of the person's own home, database and telemetry."""
    home = tempfile.mkdtemp(prefix="dim-tests-")
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    for name in ("DIM_DATABASE_URL", "DAGSTER_HOME"):
        os.environ.pop(name, None)
    os.environ["DIM_HOME"] = home
    os.environ["DAGSTER_DISABLE_TELEMETRY"] = "yes"
    own = [str(ROOT / ".tools" / "bin"), os.environ.get("PATH", ""), "/usr/sbin"]  # Debian keeps nft and ip there
    os.environ["PATH"] = os.pathsep.join(own)


def find_tool(name: str) -> Path | None:
    """Find a real program on PATH, `.tools/bin` first."""
    for alias in TOOLS[name][0]:
        if found := shutil.which(alias):
            return Path(found)
    return None


@pytest.fixture(scope="session")
def require() -> Callable[[bool, str, str], None]:
    """Give `require(present, what, command)`: skips (in CI: fails) where a real component is missing."""

    def check(present: bool, what: str, command: str) -> None:
        if present:
            return
        message = f"{what} is missing; to bring it: {command}"
        if IN_CI:
            pytest.fail(message, pytrace=False)
        pytest.skip(message)

    return check


@pytest.fixture(scope="session")
def require_tool(require: Callable[[bool, str, str], None]) -> Callable[[str], Path]:
    """Give `require_tool(name)`: the path of a real program of `TOOLS`."""

    def find(name: str) -> Path:
        found = find_tool(name)
        require(found is not None, name, TOOLS[name][1])
        assert found is not None
        return found

    return find


@pytest.fixture(scope="session")
def ipfs_binary(require_tool: Callable[[str], Path]) -> Path:
    """Give the path of a real Kubo."""
    return require_tool("ipfs")


@pytest.fixture(scope="session")
def kubo_address(ipfs_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a real private Kubo for the session, on a loop of its own, and give the address of its RPC."""
    from dim_pipelines.content.kubo_daemon import KuboDaemon

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="kubo-fixture")
    thread.start()
    try:
        start = KuboDaemon.start(tmp_path_factory.mktemp("kubo") / "repository", ipfs_binary)
        daemon = asyncio.run_coroutine_threadsafe(start, loop).result(60)
        try:
            os.environ["DIM_KUBO_SECRET"] = daemon.secret  # for processes that tests start
            yield daemon.address
        finally:
            del os.environ["DIM_KUBO_SECRET"]
            asyncio.run_coroutine_threadsafe(daemon.stop(), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count the time of each phase for the folder of its test."""
    _spent_s[report.nodeid.split("/")[1]] += report.duration


def _over_budget() -> list[str]:
    return [folder for folder, spent in _spent_s.items() if spent > BUDGET_S.get(folder, 0.0)]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run in CI whose tests took longer than their folder's budget."""
    a_worker = hasattr(session.config, "workerinput")  # each sees a part only, the first process sees all
    if IN_CI and not a_worker and _over_budget() and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what each folder's tests took, and its budget."""
    if not _spent_s or terminalreporter.config.get_verbosity() < 0:
        return
    terminalreporter.section("time per folder")
    over = _over_budget()
    for folder, spent in sorted(_spent_s.items()):
        verdict = "OVER BUDGET" if folder in over else ""
        terminalreporter.line(f"{folder:<14}{spent:7.1f} s of {BUDGET_S.get(folder, 0.0):5.0f} s  {verdict}".rstrip())
