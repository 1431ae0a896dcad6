"""One private Kubo for one home: configured, started, watched and stopped by the process that holds its lock.

The config (`kubo_config`) was measured to start without an error: no public bootstrap, no AutoConf, no delegated
routers, no mDNS, no relays, a swarm key of its own, a datastore that syncs, and a secret for its RPC. It keeps its
ports over restarts, so that peers and processes that know its addresses find it again. Other processes of the home
find its RPC with `running_kubo` and its secret with `kubo_address.find_secret`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Final, Self

from dim_pipelines.content.kubo_address import SECRET_FILE, keep_secret, secret_of
from dim_pipelines.content.kubo_config import ANY_PORT, private_config, read_peers
from dim_pipelines.content.kubo_http import KuboHttp
from dim_pipelines.content.kubo_ports import is_free, with_port
from dim_pipelines.content.kubo_repository import read_swarm_key, take_lock, write_private
from dim_pipelines.errors import ConfigurationError, ContentUnavailable, DimError

START_S: Final = 30.0
"""How long Kubo may take until its RPC answers; 0.1 s is usual, after a kill 1 s."""
STOP_S: Final = 10.0
"""How long Kubo may take to stop before it is killed."""
DIAL_S: Final = 15.0
"""How long one dial to a peer may take."""
MAX_RESTARTS: Final = 5
"""How often in a row a Kubo that ends by itself within `STEADY_S` is started again."""
STEADY_S: Final = 30.0

_PORTS_FILE: Final = "dim-ports.json"
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


class KuboDaemon:
    """A Kubo process and the lock of its repository. Make one with `start`, end it with `stop`."""

    def __init__(
        self, repository: Path, binary: Path, lock: IO[str], peers: Iterable[str], listen: Sequence[str]
    ) -> None:
        """Use `start`."""
        self._repository = repository
        self._binary = binary
        self._lock = lock
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._address = ""
        self._peers = list(peers)
        self._listen = tuple(listen)
        self._wanted = tuple(listen)
        self._swarm_addresses: tuple[str, ...] = ()
        self._dialling: set[asyncio.Task[None]] = set()

    @classmethod
    async def start(
        cls,
        repository: Path,
        binary: Path | None = None,
        *,
        swarm_key: str | None = None,
        peers: Iterable[str] = (),
        listen: str | Sequence[str] = ANY_PORT,
    ) -> Self:
        """Start the Kubo of `repository`, which is made where it is missing, and wait until it answers.

        Args:
            repository: IPFS_PATH; the lock `kubo.lock` lies beside it.
            binary: the `ipfs` program; looked for when left out.
            swarm_key: 64 hex digits; kept when the repository has one, made when left out.
            peers: multiaddrs with `/p2p/ID` of the Kubos that it keeps connections to.
            listen: multiaddrs on which the swarm is heard; with port 0 it gets a free one and keeps it from then
                on. None (`()`): it only dials out.

        Raises:
            ConfigurationError: no binary, another process keeps this Kubo, an address is wrong, or Kubo refuses
                its config.
            ContentUnavailable: it does not answer in time.
        """
        program = binary or find_ipfs()
        known = list(peers)
        read_peers(known)
        lock = await asyncio.to_thread(take_lock, repository)
        daemon = cls(repository, program, lock, known, [listen] if isinstance(listen, str) else listen)
        try:
            await daemon._prepare(swarm_key)
            try:
                await daemon._launch()
            except ConfigurationError:
                if not daemon._forget_ports():
                    raise
                await daemon._launch()  # somebody was faster to take a port of the last time
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
    def swarm_addresses(self) -> tuple[str, ...]:
        """Multiaddrs with `/p2p/ID` at which other Kubos of the swarm reach it; empty where it only dials out."""
        return self._swarm_addresses

    @property
    def swarm_key(self) -> str:
        """The 64 hex digits that every Kubo of the swarm shares."""
        return read_swarm_key(self._repository)

    @property
    def secret(self) -> str:
        """What its RPC asks every caller for, as `Authorization: Bearer SECRET`."""
        return secret_of(self._repository) or ""

    async def add_peers(self, peers: Iterable[str]) -> None:
        """Keep connections to more Kubos from now on, also after a restart.

        Raises:
            ConfigurationError: an address is wrong.
            ContentUnavailable: Kubo does not answer.
        """
        fresh = [peer for peer in dict.fromkeys(peers) if peer not in self._peers]
        read_peers(fresh)
        self._peers += fresh
        self._write_config()
        http = KuboHttp(self._address)
        for peer in fresh:
            await http.call("swarm/peering/add", peer, timeout_s=START_S)
        self._dial(fresh)

    @property
    def pid(self) -> int:
        """The process id; 0 while there is no process."""
        return self._process.pid if self._process is not None else 0

    async def stop(self) -> None:
        """Stop Kubo and give the lock back; twice is once."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        for task in list(self._dialling):
            task.cancel()
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_S)
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._address:
            keep_secret(self._address, None)
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
        secret = repository / SECRET_FILE
        if not secret.exists():
            secret.touch(mode=0o600)
            secret.write_text(secrets.token_urlsafe(32))
        self._choose_ports()
        self._write_config()

    def _choose_ports(self) -> None:
        """Take the ports of the last time, where they are free and the same addresses are asked for."""
        try:
            kept = json.loads((self._repository / _PORTS_FILE).read_text())
            api, wanted, listened = str(kept["api"]), list(kept["wanted"]), [str(each) for each in kept["listen"]]
        except (OSError, ValueError, KeyError, TypeError):
            return
        if is_free(api):
            self._address = api
        if wanted == list(self._wanted) and all(is_free(each) for each in listened):
            self._listen = tuple(listened)

    def _forget_ports(self) -> bool:
        """Take any free ports; False where none of the last time was taken."""
        if not self._address and self._listen == self._wanted:
            return False
        self._address, self._listen = "", self._wanted
        self._write_config()
        return True

    def _keep_ports(self) -> None:
        kept = {"api": self._address, "wanted": list(self._wanted), "listen": list(self._listen)}
        write_private(self._repository / _PORTS_FILE, json.dumps(kept))

    def _write_config(self) -> None:
        path = self._repository / "config"
        config = private_config(
            json.loads(path.read_text()),
            api=self._address or ANY_PORT,
            listen=self._listen,
            peers=self._peers,
            secret=self.secret,
        )
        write_private(path, json.dumps(config, indent=2))

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
        keep_secret(self._address, self.secret)
        await self._look_at_swarm()
        self._keep_ports()
        self._dial(self._peers)

    def _dial(self, peers: Iterable[str]) -> None:
        """Connect to peers now: Kubo's own peering dials for the first time after about ten seconds, then for ever."""

        async def connect(peer: str) -> None:
            with contextlib.suppress(DimError):
                await KuboHttp(self._address).call("swarm/connect", peer, timeout_s=DIAL_S)

        own = tuple(each.rpartition("/p2p/")[2] for each in self._swarm_addresses)
        for peer in peers:
            if peer.endswith(own):
                continue
            task = asyncio.create_task(connect(peer), name="kubo dials")
            self._dialling.add(task)
            task.add_done_callback(self._dialling.discard)

    async def _look_at_swarm(self) -> None:
        """Learn the ports that Kubo was given, and the addresses to give to others."""
        http = KuboHttp(self._address)
        listening = json.loads(await http.call("swarm/addrs/listen", timeout_s=START_S))
        listens = listening.get("Strings") or []
        self._listen = tuple(with_port(each, listens) for each in self._listen)
        identity = json.loads(await http.call("id", timeout_s=START_S))
        tail = f"/p2p/{identity['ID']}"
        found = [each if each.endswith(tail) else each + tail for each in identity.get("Addresses") or []]
        self._swarm_addresses = tuple(found) if self._listen else ()

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
                self._write_config()
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
