"""Foreign programs under one command: started, watched, restarted once, and stopped with everything they started.

Each child leads a session of its own, so that Ctrl-C reaches only `dim`, which then stops the children in
its own order. What a child has started (Dagster's code servers and run workers) is in its process group and
goes with it. A child gets SIGTERM from the kernel should `dim` itself be killed.

A child that ends by itself is reported and started again once; when it ends a second time everything ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dim_pipelines.errors import DimError

STOP_S: Final = 4.0
"""How long a child may take to stop after SIGTERM before it is killed, in seconds."""
_LOG_TAIL_BYTES: Final = 4096

_LEASH: Final = (
    "import ctypes, os, signal, sys; "
    "ctypes.CDLL(None).prctl(1, signal.SIGTERM); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(1); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)
"""Ask the kernel for SIGTERM at the parent's death, see that it has not died meanwhile, become the program."""


class ChildEnded(DimError):
    """A program that this command needs has ended twice."""

    code = "child_ended"


@dataclass(slots=True)
class Child:
    """A program to run.

    Attributes:
        name: what people call it.
        command: program (absolute path) and arguments.
        environment: its whole environment.
        log: where its output goes, added to what is there.
        ready: answers once it serves; None where nothing has to wait for it.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    ready: Callable[[], Awaitable[bool]] | None = None
    process: asyncio.subprocess.Process | None = field(default=None, init=False)
    starts: int = field(default=0, init=False)

    async def start(self) -> None:
        """Start it; its output is added to its log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        leashed = [sys.executable, "-S", "-c", _LEASH, str(os.getpid()), *self.command]
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *leashed,
                env=dict(self.environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.starts += 1

    async def wait_ready(self, timeout_s: float) -> None:
        """Return once it serves.

        Raises:
            ChildEnded: it ended, or did not serve within `timeout_s`; the message ends with its last line of output.
        """
        if self.ready is None or self.process is None:
            return
        try:
            async with asyncio.timeout(timeout_s):
                while not await self.ready():
                    if self.process.returncode is not None:
                        raise ChildEnded(f"{self.name} ended at its start{self.last_words()}", hint=f"see {self.log}")
                    await asyncio.sleep(0.2)
        except TimeoutError as error:
            message = f"{self.name} did not answer within {timeout_s:g} s{self.last_words()}"
            raise ChildEnded(message, hint=f"see {self.log}") from error

    async def stop(self, grace_s: float = STOP_S) -> None:
        """Stop it and everything it started: SIGTERM, and SIGKILL for what is left after `grace_s`."""
        process = self.process
        if process is None:
            return
        if process.returncode is None:
            _signal_group(process.pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await process.wait()
        _signal_group(process.pid, signal.SIGKILL)
        await process.wait()

    def last_words(self) -> str:
        """Give the last line of its output after a colon, or nothing."""
        try:
            tail = self.log.read_bytes()[-_LOG_TAIL_BYTES:].decode("utf-8", "replace")
        except OSError:
            return ""
        lines = [line.strip() for line in tail.splitlines() if line.strip()]
        return f": {lines[-1]}" if lines else ""


def _signal_group(leader: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


async def supervise(children: Sequence[Child], report: Callable[[str], None]) -> None:
    """Watch started children until this is cancelled; stopping them stays with the caller.

    Raises:
        ChildEnded: one has ended a second time.
    """
    watches = [asyncio.create_task(_watch(child, report), name=child.name) for child in children]
    try:
        await asyncio.gather(*watches)
    finally:
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)


async def _watch(child: Child, report: Callable[[str], None]) -> None:
    while child.process is not None:
        code = await child.process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if child.starts > 1:
            raise ChildEnded(f"{child.name} has ended again ({how}){child.last_words()}", hint=f"see {child.log}")
        report(f"{child.name} has ended ({how}), it is started again")
        _signal_group(child.process.pid, signal.SIGKILL)
        await child.start()
