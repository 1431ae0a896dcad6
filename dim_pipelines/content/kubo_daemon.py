"""One private Kubo for one home: configured, started, watched and stopped by the process that holds its lock.

The config is the one that was measured to start without an error and to listen on loopback only: no public
bootstrap, no AutoConf, no delegated routers, no mDNS, no relays, a swarm key of its own, and a datastore that
syncs. Other processes of the home find its RPC with `running_kubo` and connect.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final, Self

from dim_pipelines.errors import ConfigurationError, ContentUnavailable

START_S: Final = 30.0
"""How long Kubo may take until its RPC answers; 0.1 s is usual, after a kill 1 s."""
STOP_S: Final = 10.0
"""How long Kubo may take to stop before it is killed."""
MAX_RESTARTS: Final = 5
"""How often in a row a Kubo that ends by itself within `STEADY_S` is started again."""
STEADY_S: Final = 30.0

_PR_SET_PDEATHSIG: Final = 1
_log = logging.getLogger(__name__)


def find_ipfs() -> Path:
    """Find the Kubo binary: on PATH, else where `make tools` puts it beside a checkout.

    Raises:
        ConfigurationError: there is none.
    """
    beside = Path(__file__).resolve().parents[2] / ".tools" / "bin" / "ipfs"
    found = shutil.which("ipfs") or (str(beside) if beside.is_file() else None)
    if found is None:
        raise ConfigurationError("no Kubo on this machine: `ipfs` is not on PATH", hint="to bring it: make tools")
    return Path(found)


def running_kubo(repository: Path) -> str | None:
    """Give the RPC address of the Kubo that some process keeps running there; None when none does."""
    try:
        with _lock_path(repository).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            return (repository / "api").read_text().strip() or None
        except FileNotFoundError:
            return None
    except FileNotFoundError:
        return None
    return None


class KuboDaemon:
    """A Kubo process and the lock of its repository. Make one with `start`, end it with `stop`."""

    def __init__(self, repository: Path, binary: Path, lock: IO[str]) -> None:
        """Use `start`."""
        self._repository = repository
        self._binary = binary
        self._lock = lock
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._address = ""

    @classmethod
    async def start(cls, repository: Path, binary: Path | None = None, *, swarm_key: str | None = None) -> Self:
        """Start the Kubo of `repository`, which is made where it is missing, and wait until it answers.

        Args:
            repository: IPFS_PATH; the lock `kubo.lock` lies beside it.
            binary: the `ipfs` program; looked for when left out.
            swarm_key: 64 hex digits; kept when the repository has one, made when left out.

        Raises:
            ConfigurationError: no binary, another process keeps this Kubo, or it refuses its config.
            ContentUnavailable: it does not answer in time.
        """
        program = binary or find_ipfs()
        lock = await asyncio.to_thread(_take_lock, repository)
        daemon = cls(repository, program, lock)
        try:
            await daemon._prepare(swarm_key)
            await daemon._launch()
        except BaseException:
            await daemon.stop()
            raise
        daemon._watcher = asyncio.create_task(daemon._watch(), name="kubo")
        return daemon

    @property
    def address(self) -> str:
        """The multiaddr of the RPC, on loopback."""
        return self._address

    @property
    def pid(self) -> int:
        """The process id; 0 while there is no process."""
        return self._process.pid if self._process is not None else 0

    async def stop(self) -> None:
        """Stop Kubo and give the lock back; twice is once."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_S)
            except TimeoutError:
                process.kill()
                await process.wait()
        if not self._lock.closed:
            self._lock.close()

    async def _prepare(self, swarm_key: str | None) -> None:
        repository = self._repository
        if not (repository / "config").exists():
            await asyncio.to_thread(repository.mkdir, mode=0o700, parents=True, exist_ok=True)
            await self._run("init", "--empty-repo", "--profile=autoconf-off", "-a", "ed25519")
        key = repository / "swarm.key"
        if swarm_key is not None or not key.exists():
            text = f"/key/swarm/psk/1.0.0/\n/base16/\n{swarm_key or secrets.token_hex(32)}\n"
            key.touch(mode=0o600)
            key.write_text(text)
        config = json.loads((repository / "config").read_text())
        path = repository / "config.partial"
        path.touch(mode=0o600)
        path.write_text(json.dumps(private_config(config), indent=2))
        path.replace(repository / "config")

    async def _run(self, *arguments: str) -> None:
        process = await asyncio.create_subprocess_exec(
            self._binary,
            *arguments,
            env=self._environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await process.communicate()
        if process.returncode:
            raise ConfigurationError(f"ipfs {arguments[0]} failed: {_last_line(errors)}")

    async def _launch(self) -> None:
        api = self._repository / "api"
        api.unlink(missing_ok=True)
        with (self._repository / "daemon.log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                self._binary,
                "daemon",
                "--migrate=false",
                env=self._environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent(),
                start_new_session=True,  # Ctrl-C is for the owner, which stops Kubo when nobody needs it any more
            )
        deadline = time.monotonic() + START_S
        while not (api.exists() and self._ready()):
            if self._process.returncode is not None:
                raise ConfigurationError(f"Kubo ended at once: {self._last_words()}")
            if time.monotonic() > deadline:
                raise ContentUnavailable(f"Kubo did not answer within {START_S:.0f} s: {self._last_words()}")
            await asyncio.sleep(0.02)
        self._address = api.read_text().strip()

    def _ready(self) -> bool:
        return b"Daemon is ready" in (self._repository / "daemon.log").read_bytes()

    def _last_words(self) -> str:
        return _last_line((self._repository / "daemon.log").read_bytes())

    async def _watch(self) -> None:
        """Start Kubo again, at the same address, when it ends by itself."""
        quick = 0
        while self._process is not None:
            started = time.monotonic()
            status = await self._process.wait()
            quick = quick + 1 if time.monotonic() - started < STEADY_S else 1
            _log.warning("Kubo ended with status %s", status)
            if quick > MAX_RESTARTS:
                _log.error("Kubo is not started again: %s", self._last_words())
                return
            try:
                _set_api(self._repository / "config", self._address)
                await self._launch()
            except (ConfigurationError, ContentUnavailable) as error:
                _log.warning("Kubo could not be started again: %s", error.message)

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "IPFS_PATH": str(self._repository),
            "IPFS_TELEMETRY": "off",
            "LIBP2P_FORCE_PNET": "1",
        }


def private_config(config: dict[str, Any]) -> dict[str, Any]:
    """Give the config of a Kubo with DIM's settings put in: private, on loopback, durable."""
    settings: dict[str, dict[str, Any]] = {
        "AutoConf": {"Enabled": False},
        "DNS": {"Resolvers": {}},
        "Routing": {"Type": "dht", "DelegatedRouters": [], "LoopbackAddressesOnLanDHT": True},
        "Ipns": {"DelegatedPublishers": []},
        "Addresses": {"API": "/ip4/127.0.0.1/tcp/0", "Gateway": [], "Swarm": ["/ip4/127.0.0.1/tcp/0"]},
        "Discovery": {"MDNS": {"Enabled": False}},
        "AutoTLS": {"Enabled": False},
        "HTTPRetrieval": {"Enabled": False},
        "Version": {"SwarmCheckEnabled": False},
        "Swarm": {
            "DisableNatPortMap": True,
            "RelayClient": {"Enabled": False},
            "RelayService": {"Enabled": False},
            "Transports": {
                "Network": {
                    "QUIC": False,
                    "Relay": False,
                    "WebTransport": False,
                    "WebRTCDirect": False,
                    "Websocket": False,
                }
            },
        },
        "Plugins": {"Plugins": {"telemetry": {"Disabled": True}}},
        "Pubsub": {"Enabled": True},
    }
    merged = {**config, "Bootstrap": []}
    for section, values in settings.items():
        merged[section] = {**(config.get(section) or {}), **values}
    for mount in merged["Datastore"]["Spec"]["mounts"]:
        if mount.get("type") == "flatfs":
            mount["sync"] = True
    return merged


def _set_api(path: Path, address: str) -> None:
    config = json.loads(path.read_text())
    config["Addresses"]["API"] = address
    partial = path.with_name("config.partial")
    partial.touch(mode=0o600)
    partial.write_text(json.dumps(config, indent=2))
    partial.replace(path)


def _lock_path(repository: Path) -> Path:
    return repository.parent / "kubo.lock"


def _take_lock(repository: Path) -> IO[str]:
    path = _lock_path(repository)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror or error}") from error
    for _ in range(5):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)  # `running_kubo` of another process may hold it for a moment
        else:
            return file
    file.close()
    raise ConfigurationError(
        f"another process keeps the Kubo in {repository}", hint="connect to it with --ipfs kubo, or stop it"
    )


def _last_line(output: bytes) -> str:
    lines = output.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].removeprefix("Error: ") if lines else "it said nothing"


def _die_with_parent() -> Callable[[], None] | None:
    """Give what makes a child end when the thread that made it does, so that a killed owner leaves no Kubo behind."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)  # loaded before the fork: only a system call may happen after it

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    return ask
