"""A node daemon as a child process: for `dim up`, `dim infer`, the demo, measurements and tests.

The child ends when this process does, however it ends: it holds one end of a pipe. (The kernel's
parent-death signal would follow the thread that spawned it, and that may be any.)
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import dim_pipelines
from dim_pipelines.errors import NodeUnreachable
from dim_pipelines.wire.status import from_failure

START_TIMEOUT_S: Final = 120.0
STOP_TIMEOUT_S: Final = 75.0
_MAX_LINE: Final = 1 << 16


class NodeProcess:
    """A running daemon.

    Attributes:
        name: its name.
        address: for `open_channel`.
        pid: its process id.
        key: its public key, `ed25519:…`.
        metrics: URL of its `/metrics`.
        home: its DIM_HOME.
        secure: where it speaks TLS; empty without a network.
        id: its IPNS name; empty without a network.
    """

    def __init__(self, process: subprocess.Popen[bytes], pipe: int, home: Path, announced: dict[str, Any]) -> None:
        """Use `start`."""
        self._process = process
        self._pipe = pipe
        self._asked = False
        self.home = home
        self.name = str(announced["name"])
        self.address = str(announced["address"])
        self.pid = process.pid
        self.key = str(announced["key"])
        self.metrics = str(announced["metrics"])
        self.secure = str(announced.get("secure", ""))
        self.id = str(announced.get("id", ""))

    @classmethod
    def start(
        cls,
        home: Path,
        *,
        name: str,
        listen: str | None = None,
        trust: Sequence[str] = (),
        ipfs: str = "embedded",
        threads: int = 1,
        engines: Sequence[str] = (),
        options: Sequence[str] = (),
        timeout_s: float = START_TIMEOUT_S,
    ) -> NodeProcess:
        """Spawn a daemon and wait until it serves (about 3 s with torch, 1 s without).

        Args:
            home: its DIM_HOME; made when missing.
            name: its name.
            listen: where; a socket in the home when left out.
            trust: keys (`ed25519:…`) it trusts besides its own.
            ipfs: its content store.
            threads: compute threads.
            engines: only these engines; all when left out.
            options: further arguments of `python -m dim_pipelines.node`.
            timeout_s: how long it may take.

        Raises:
            DimError: what the daemon said when it could not start.
            NodeUnreachable: it ended or said nothing in time.
        """
        more = [*options, *(["--listen", listen] if listen else [])]
        for engine in engines:
            more += ["--engine", engine]
        return StartingNode.spawn(home, name=name, trust=trust, ipfs=ipfs, threads=threads, options=more).wait(
            timeout_s
        )

    @property
    def alive(self) -> bool:
        """Tell whether the process runs."""
        return self._process.poll() is None

    def terminate(self) -> None:
        """Ask it to drain and end, without waiting; asked twice, it ends at once."""
        self._asked = True
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Drain it, wait until it has ended, and give its exit code; killed when it takes longer."""
        if not self._asked:
            self.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
        return self._close()

    def kill(self) -> int:
        """End it at once (SIGKILL) and give its exit code."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        return self._close()

    def __enter__(self) -> Self:
        """Give the process itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Stop it."""
        self.stop()

    def _close(self) -> int:
        code = self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        return code


class StartingNode:
    """A daemon that was spawned and does not serve yet."""

    def __init__(self, process: subprocess.Popen[bytes], pipe: int, home: Path, log: Path) -> None:
        """Use `spawn`."""
        self._process = process
        self._pipe = pipe
        self._home = home
        self._log = log

    @classmethod
    def spawn(
        cls,
        home: Path,
        *,
        name: str,
        trust: Sequence[str] = (),
        ipfs: str = "embedded",
        threads: int = 1,
        options: Sequence[str] = (),
    ) -> Self:
        """Spawn a daemon, without waiting for it; arguments as of `NodeProcess.start`."""
        reading, writing = os.pipe()
        command = [sys.executable, "-m", "dim_pipelines.node", "--home", str(home), "--name", name, "--ipfs", ipfs]
        command += ["--threads", str(threads), "--parent", str(reading), *options]
        for key in trust:
            command += ["--trust", key]
        log = home / "logs" / "node.log"
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with log.open("ab") as errors:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    pass_fds=(reading,),
                    env=_environment(),
                    start_new_session=True,  # Ctrl-C is for this process, which then stops the daemon in order
                )
        except BaseException:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        return cls(process, writing, home, log)

    def wait(self, timeout_s: float = START_TIMEOUT_S) -> NodeProcess:
        """Wait until it serves; when it does not, it is killed.

        Raises:
            DimError: what the daemon said when it could not start.
            NodeUnreachable: it ended (`kill` ends it) or said nothing in time.
        """
        try:
            return NodeProcess(self._process, self._pipe, self._home, _first_line(self._process, timeout_s, self._log))
        except BaseException:
            os.close(self._pipe)
            self._process.kill()
            self._process.wait()
            if self._process.stdout:
                self._process.stdout.close()
            raise

    def kill(self) -> None:
        """End it at once; a `wait` in another thread then raises."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


def _environment() -> dict[str, str]:
    """Give this process's environment, with a checkout on the import path, and gRPC's own log off."""
    given = dict(os.environ)
    root = Path(dim_pipelines.__file__).resolve().parent.parent
    if root.name not in ("site-packages", "dist-packages"):
        given["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), given.get("PYTHONPATH", "")]))
    given.setdefault("GRPC_VERBOSITY", "NONE")
    given.pop("DIM_HOME", None)
    return given


def _first_line(process: subprocess.Popen[bytes], timeout_s: float, log: Path) -> dict[str, Any]:
    """Wait for the announcement.

    Raises:
        DimError: the daemon said why it cannot start.
        NodeUnreachable: it ended without a word, or is silent.
    """
    assert process.stdout is not None
    line = b""
    until = time.monotonic() + timeout_s
    while not line.endswith(b"\n") and len(line) < _MAX_LINE:
        if not select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
            raise NodeUnreachable(f"the node daemon did not start within {timeout_s:.0f} s", hint=f"its log: {log}")
        part = os.read(process.stdout.fileno(), 4096)
        if not part:
            break
        line += part
    try:
        announced = json.loads(line)
        if "error" in announced:
            raise from_failure(announced["error"], announced["message"], announced.get("hint"))
        if isinstance(announced, dict) and {"name", "address", "key", "metrics"} <= set(announced):
            return announced
    except (ValueError, TypeError, KeyError) as error:
        raise NodeUnreachable("the node daemon ended before it served", hint=f"its log: {log}") from error
    raise NodeUnreachable("the node daemon announced something else than itself", hint=f"its log: {log}")
