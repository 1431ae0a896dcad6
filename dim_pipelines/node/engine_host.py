"""The daemon's end of an engine process: spawn it, ask it, and end it when it is late, wrong or gone.

One request is under way at a time. Whatever the process does (crash, hang, write rubbish), the daemon gets
`EngineFailed` for that request and lives; `start` makes a fresh process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import dim_pipelines
from dim_pipelines.errors import ConfigurationError, EngineFailed, ProtocolError
from dim_pipelines.node import confinement
from dim_pipelines.node.engine_process import BOOT
from dim_pipelines.node.frames import clean_text, encode_frame, read_frame

log = logging.getLogger(__name__)

START_TIMEOUT_S: Final = 120.0
"""How long a process may take until it says hello: importing torch from a cold disk is slow."""
MAX_ANSWER_BYTES: Final = 1 << 30
"""The largest answer taken from an engine process."""
WATCH_S: Final = 0.25
"""How often the memory of a process at work is looked at."""
_STREAM_BUFFER: Final = 1 << 20
_TAIL_LINES: Final = 20


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How to make an engine process.

    Attributes:
        device: `cpu` or `cuda:N`.
        engines: the engines it offers.
        threads: compute threads.
        models: the folder of materialised models, readable.
        scratch: its only writable folder; emptied at each start.
        secrets: paths that must not lie beneath anything it may read.
        memory_bytes: memory it may use: its private memory is limited to that, and it is ended when private and
            shared memory together are more while it works; 0: no limit.
        confine: False only where `confinement.unavailable` says why.
    """

    device: str
    engines: tuple[str, ...]
    threads: int
    models: Path
    scratch: Path
    secrets: tuple[Path, ...] = ()
    memory_bytes: int = 0
    file_bytes: int = 4 << 30
    confine: bool = True

    def readable(self) -> tuple[Path, ...]:
        """List what the process may read."""
        package = Path(dim_pipelines.__file__).resolve().parent
        return (*confinement.system_readable(), package, self.models)

    def to_child(self, descriptor: int) -> dict[str, Any]:
        """Give what the process reads from its command line.

        Raises:
            ConfigurationError: it could read one of the secrets.
        """
        for secret in self.secrets:
            reached = confinement.exposed(secret, self.readable()) if self.confine else None
            if reached:
                raise ConfigurationError(
                    f"{secret} lies in {reached}, which models may read",
                    hint="set DIM_HOME to a folder outside the Python installation and /usr",
                )
        devices = confinement.cuda_nodes() if self.device.startswith("cuda") else ()
        return {
            "socket": descriptor,
            "parent": os.getpid(),
            "device": self.device,
            "engines": list(self.engines),
            "threads": self.threads,
            "confine": self.confine,
            "memory_bytes": self.memory_bytes,
            "file_bytes": self.file_bytes,
            "readable": [str(path) for path in self.readable()],
            "writable": [str(self.scratch)],
            "devices": [str(path) for path in devices],
            "sys_path": _search_path(),
        }

    def environment(self) -> dict[str, str]:
        """Give the whole environment of the process: nothing of the daemon's own but PATH."""
        scratch, threads = str(self.scratch), str(self.threads)
        given = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "HOME": scratch,
            "TMPDIR": scratch,
            "TORCHINDUCTOR_CACHE_DIR": scratch,
            # A model allocates its temporaries anew in each call, and glibc would give them to the kernel and fault
            # them in again each time (mallopt(3)): 9 % of an encoder's time, measured. `give_back` does it in time.
            "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
            "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        }
        if self.device.startswith("cuda"):
            given["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS repeats its results only with a fixed workspace
            if "LD_LIBRARY_PATH" in os.environ:
                given["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        return given


@dataclass(frozen=True, slots=True)
class Hello:
    """What a started process said of itself.

    Attributes:
        confined: whether it is shut in.
        numerics: engine → numerics base class.
        missing: engine → why it cannot be offered.
        memory_bytes: memory of the device.
        device_name: the device's own name.
    """

    confined: bool
    numerics: dict[str, str]
    missing: dict[str, str]
    memory_bytes: int
    device_name: str


class EngineHost:
    """One engine process, restarted on demand."""

    def __init__(self, config: EngineConfig, boot: str = BOOT) -> None:
        """Keep how to make it; nothing is spawned before `start`."""
        self.config = config
        self.on_exit: Callable[[], None] = lambda: None
        """Called in the event loop when a process has gone, for whatever reason."""
        self.hello: Hello | None = None
        self.starts = 0
        self._boot = boot
        self._process: Process | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._listening: asyncio.Task[None] | None = None
        self._watching: asyncio.TimerHandle | None = None
        self._too_large = 0

    @property
    def alive(self) -> bool:
        """Tell whether there is a process that can be asked."""
        return self._process is not None and self._process.returncode is None and self._writer is not None

    @property
    def pid(self) -> int | None:
        """Give the process's id while there is one."""
        return self._process.pid if self._process else None

    async def start(self) -> Hello:
        """Spawn the process and wait until it is shut in and has imported its engines.

        Raises:
            EngineFailed: it ended or said nothing in time; its last words are in the message.
            ConfigurationError: a secret lies where models may read.
        """
        await self.kill()
        await asyncio.to_thread(_empty, self.config.scratch)
        mine, theirs = socket.socketpair()
        try:
            child = self.config.to_child(theirs.fileno())
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-B", "-c", self._boot, json.dumps(child),
                stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, pass_fds=(theirs.fileno(),),
                env=self.config.environment(), cwd=self.config.scratch, start_new_session=True,
            )  # fmt: skip
        except BaseException:
            mine.close()
            raise
        finally:
            theirs.close()
        self.starts += 1
        self._tail.clear()
        self._too_large = 0
        self._listening = asyncio.create_task(self._listen(self._process))
        mine.setblocking(False)
        self._reader, self._writer = await asyncio.open_connection(sock=mine, limit=_STREAM_BUFFER)
        header, _ = await self._exchange(None, (), START_TIMEOUT_S, "start")
        try:
            hello = Hello(
                bool(header["confined"]),
                _texts(header["numerics"]),
                _texts(header["missing"]),
                int(header["memory"]),
                clean_text(header["device"], 200),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            await self.kill()
            raise EngineFailed("the engine process said no proper hello") from error
        if hello.confined != self.config.confine:
            await self.kill()
            raise EngineFailed("the engine process is not confined as it was told to be")
        self.hello = hello
        return hello

    async def ask(self, header: dict[str, Any], *payload: bytes, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        """Send a request and wait for its answer.

        Raises:
            EngineFailed: the process is gone, late, or wrote rubbish (it is ended then); or it answered with a failure.
        """
        answer, data = await self._exchange(header, payload, timeout_s, str(header.get("op")))
        if answer.get("ok") is not True:
            raise EngineFailed(clean_text(answer.get("message", "no reason given"), 500))
        return answer, data

    async def kill(self) -> None:
        """End the process at once and reap it; no error where there is none."""
        process, writer, listening = self._process, self._writer, self._listening
        self._process = self._writer = self._reader = self._listening = None
        if writer:
            writer.close()
        if process:
            _end(process)
            await process.wait()
        if listening:
            await asyncio.wait([listening], timeout=1.0)
            listening.cancel()

    async def _exchange(
        self, header: dict[str, Any] | None, payload: tuple[bytes, ...], timeout_s: float, what: str
    ) -> tuple[dict[str, Any], bytes]:
        reader, writer = self._reader, self._writer
        if reader is None or writer is None:
            raise EngineFailed("the engine process is not running")
        self._watch()
        try:
            async with asyncio.timeout(timeout_s):
                if header is not None:
                    writer.writelines(encode_frame(header, *payload))
                    await writer.drain()
                return await read_frame(reader, MAX_ANSWER_BYTES)
        except TimeoutError as error:
            await self.kill()
            raise EngineFailed(f"the engine took longer than {timeout_s:.1f} s ({what}) and was ended") from error
        except ProtocolError as error:
            await self.kill()
            raise EngineFailed(error.message) from error
        except (asyncio.IncompleteReadError, OSError) as error:
            raise EngineFailed(await self._obituary(what)) from error
        except asyncio.CancelledError:
            # Half an exchange is on the wire: nothing after it could be understood.
            await self.kill()
            raise
        finally:
            if self._watching:
                self._watching.cancel()

    def _watch(self) -> None:
        """End the process when it uses more memory than it may; look again while the exchange lasts."""
        if not self.config.memory_bytes:
            return
        process = self._process
        if process and process.returncode is None:
            self._watching = asyncio.get_running_loop().call_later(WATCH_S, self._weigh, process)

    def _weigh(self, process: Process) -> None:
        used = _memory_in_use(process.pid)
        if used > self.config.memory_bytes and process.returncode is None:
            self._too_large = used
            _end(process)
        else:
            self._watch()

    async def _obituary(self, what: str) -> str:
        process = self._process
        await self.kill()
        code = process.returncode if process else None
        if self._too_large:
            used = f"{self._too_large} bytes of memory, {self.config.memory_bytes} are allowed"
            return f"the engine process used {used}, and was ended ({what})"
        if code is not None and code < 0:
            how = f"was ended by {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"died ({code})"
        else:
            how = f"ended with exit code {code}"
        words = next((line for line in reversed(self._tail) if line.strip()), "")
        return f"the engine process {how} ({what})" + (f": {clean_text(words.strip(), 300)}" if words else "")

    async def _listen(self, process: Process) -> None:
        """Keep the last lines of what the process prints; it can print as much as it likes."""
        assert process.stdout is not None
        while chunk := await process.stdout.read(4096):
            lines = chunk.decode("utf-8", "replace").splitlines()
            self._tail.extend(line[:500] for line in lines)
            log.debug("engine process %d: %s", process.pid, " | ".join(lines)[:1000])
        await process.wait()
        self.on_exit()


def _search_path() -> list[str]:
    """Give this process's import path, made absolute, with the package's own root last."""
    root = str(Path(dim_pipelines.__file__).resolve().parent.parent)
    entries = [str(Path(entry).absolute()) for entry in sys.path if entry and Path(entry).exists()]
    return [*dict.fromkeys(entry for entry in entries if entry != root), root]


def _end(process: Process) -> None:
    """Send SIGKILL. `Process.kill` would reap a process that has just died, and its exit code would be lost."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _memory_in_use(pid: int) -> int:
    """Give the bytes of private and shared memory that a process has in use, without files it maps (proc(5))."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has just gone
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)


def _texts(value: Mapping[str, Any]) -> dict[str, str]:
    return {clean_text(key, 200): clean_text(item, 500) for key, item in value.items()}
