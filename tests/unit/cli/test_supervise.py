from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from dim_pipelines.cli.supervise import Child, ChildEnded, supervise


def child(tmp_path: Path, script: str, **settings: object) -> Child:
    command = [sys.executable, "-S", "-c", textwrap.dedent(script)]
    return Child("the child", command, dict(os.environ), tmp_path / "child.log", **settings)  # type: ignore[arg-type]


async def never() -> bool:
    return False


async def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - it watches other processes, which set no event
            await asyncio.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_stopping_a_child_ends_what_it_has_started(tmp_path: Path) -> None:
    started = child(
        tmp_path,
        """
        import subprocess, sys
        subprocess.run([sys.executable, "-S", "-c", "import os, signal, time; "
            "signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(300)"])
        """,
    )
    await started.start()
    await until(lambda: started.log.exists() and started.log.read_text().strip())
    inner = int(started.log.read_text())
    await started.stop(grace_s=60.0)  # the child ends at SIGTERM, in its own time; what it started does not
    assert started.process is not None and started.process.returncode == -signal.SIGTERM
    await until(lambda: gone(inner))


async def test_a_child_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    stubborn = child(
        tmp_path,
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
    )
    await stubborn.start()
    await until(lambda: "up" in stubborn.log.read_text())
    await stubborn.stop(grace_s=0.2)
    assert stubborn.process is not None and stubborn.process.returncode == -signal.SIGKILL


async def test_a_child_that_ends_at_its_start_is_named_with_its_last_words(tmp_path: Path) -> None:
    failing = child(tmp_path, "print('no such table: runs'); raise SystemExit(3)", ready=never)
    await failing.start()
    with pytest.raises(ChildEnded, match=r"the child ended at its start: no such table: runs"):
        await failing.wait_ready(60)
    await failing.stop()


async def test_a_child_that_never_answers_is_an_error(tmp_path: Path) -> None:
    silent = child(tmp_path, "import time; time.sleep(60)", ready=never)
    await silent.start()
    with pytest.raises(ChildEnded, match="did not answer within"):
        await silent.wait_ready(0.3)
    await silent.stop()


async def test_a_dead_child_is_reported_and_started_again_once_then_all_ends(tmp_path: Path) -> None:
    failing = child(tmp_path, "print('boom'); raise SystemExit(3)")
    reports: list[str] = []
    await failing.start()
    with pytest.raises(ChildEnded, match=r"the child has ended again \(exit code 3\): boom"):
        await asyncio.wait_for(supervise([failing], reports.append), 60)
    assert reports == ["the child has ended (exit code 3), it is started again"]
    assert failing.starts == 2


async def test_a_child_gets_sigterm_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = f"""
    import asyncio, os, sys
    from pathlib import Path
    from dim_pipelines.cli.supervise import Child

    async def main():
        one = Child("one", [sys.executable, "-S", "-c", "import time; time.sleep(60)"], dict(os.environ),
                    Path({str(tmp_path / "log")!r}))
        await one.start()
        print(one.process.pid, flush=True)
        await asyncio.sleep(60)

    asyncio.run(main())
    """
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(script), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    await until(lambda: gone(pid))
