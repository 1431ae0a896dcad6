"""DIM on the machines of a test: a home each, `dim` as a person types it there, and daemons that end with the test."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from namespaces import Space, Spaces

from dim_pipelines.database.engine import open_database
from dim_pipelines.discovery.node_table import NodeRow, NodeTable

CHAOS = os.environ.get("DIM_CHAOS") == "1"
"""Long and large, with engines that need much memory (`make chaos`); otherwise short, with the echo engine."""
WORKER = Path(__file__).with_name("worker.py")
START_S = 90.0
WAIT_S = 60.0


def wait_until(ask: Callable[[], Any], what: str, deadline_s: float = WAIT_S) -> Any:
    """Ask until the answer is true, and give it."""
    end = time.monotonic() + deadline_s
    while True:
        if answer := ask():
            return answer
        assert time.monotonic() < end, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.05)


def label(machine: Machine) -> str:
    """Give the name for people of a machine's node."""
    return f"m{machine.space.number}"


class Daemon:
    """A program that runs on a machine and prints JSON lines.

    Attributes:
        process: the program; the leader of its process group.
        lines: what it printed, as it came.
        seen_s: monotonic time of each of these lines.
    """

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self.log = log
        self.lines: list[dict[str, Any]] = []
        self.seen_s: list[float] = []
        self._fresh: queue.Queue[dict[str, Any] | None] = queue.Queue()
        assert process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, output: IO[str]) -> None:
        for line in output:
            with suppress(ValueError):
                value = json.loads(line)
                self.seen_s.append(time.monotonic())
                self.lines.append(value)
                self._fresh.put(value)
        self._fresh.put(None)

    def next(self, deadline_s: float = START_S) -> dict[str, Any]:
        """Give the next line that it prints."""
        try:
            line = self._fresh.get(timeout=deadline_s)
        except queue.Empty:
            raise AssertionError(f"no line within {deadline_s:g} s; {self.last_words()}") from None
        assert line is not None, f"it ended; {self.last_words()}"
        assert "error" not in line, line
        return line

    def result(self, deadline_s: float = 120.0) -> dict[str, Any]:
        """Wait until it has ended well, and give the last line."""
        assert self.wait(deadline_s) == 0, self.last_words()
        self._reader.join()
        return self.lines[-1]

    def wait(self, deadline_s: float = 60.0) -> int:
        """Wait until it has ended, and give its exit code."""
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it has not ended within {deadline_s:g} s; {self.last_words()}") from None

    def signal(self, number: int) -> None:
        """Signal the program and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End it at once (SIGKILL), as a power cut does."""
        self.signal(signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def stop(self) -> int:
        """End it in order."""
        with suppress(ProcessLookupError):
            self.process.terminate()
        return self.wait()

    def last_words(self) -> str:
        """Give the end of its log."""
        return f"{self.log}: …{self.log.read_text(errors='replace')[-1500:]}"


class Machine:
    """A machine with a DIM_HOME.

    Attributes:
        space: where its programs run.
        home: its DIM_HOME.
    """

    def __init__(self, space: Space, folder: Path) -> None:
        self.space = space
        self.home = folder / f"m{space.number}"
        self.home.mkdir(parents=True)
        self._daemons: list[Daemon] = []
        own = ("DIM_", "DAGSTER_", "CI")
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith(own)}
        self._environment |= {"DIM_HOME": str(self.home), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}

    @property
    def address(self) -> str:
        """Its IPv4 address."""
        return self.space.address

    def dim(self, *arguments: object, deadline_s: float = 120.0) -> dict[str, Any]:
        """Type a command and give what it prints with --json."""
        done = self.space.run(
            *self._command("dim_pipelines.cli", arguments), "--json",
            env=self._environment, check=False, timeout=deadline_s,
        )  # fmt: skip
        assert done.returncode == 0, f"dim {' '.join(map(str, arguments))}: {done.stdout}{done.stderr}"
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return answer

    def start_dim(self, *arguments: object) -> Daemon:
        """Type a command that goes on; `next` gives its lines."""
        return self.start(*self._command("dim_pipelines.cli", arguments), "--json")

    def start_node(self, *arguments: object) -> Daemon:
        """Start a node daemon, with arguments that are for machines, and wait until it serves."""
        node = self.start(*self._command("dim_pipelines.node", arguments))
        node.next()
        return node

    def start_worker(self, *arguments: object) -> Daemon:
        """Start a run worker."""
        return self.start(sys.executable, WORKER, *arguments)

    def start(self, *command: object) -> Daemon:
        """Start a program."""
        log = self.home / f"said-{len(self._daemons)}.log"
        with log.open("w") as errors:
            process = self.space.start(
                *command,
                env=self._environment, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True,
            )  # fmt: skip
        self._daemons.append(Daemon(process, log))
        return self._daemons[-1]

    def close(self) -> None:
        """End whatever still runs here."""
        for daemon in reversed(self._daemons):
            daemon.signal(signal.SIGCONT)
            daemon.kill()

    def _command(self, module: str, arguments: Sequence[object]) -> list[object]:
        return [sys.executable, "-m", module, *arguments]


@contextmanager
def machines(spaces: Spaces, folder: Path) -> Iterator[list[Machine]]:
    """Give each namespace a home, and end what was started there."""
    made = [Machine(space, folder) for space in spaces]
    try:
        yield made
    finally:
        for machine in made:
            machine.close()


class Network:
    """A network of machines; the first one founds it, orchestrates, and runs the batches.

    Attributes:
        hub: the first machine.
        orchestrator: the orchestrator's daemon there.
        nodes: node daemons by machine.
    """

    def __init__(self, hub: Machine, *options: object) -> None:
        """Found the network and start its orchestrator."""
        self.hub = hub
        self._options = options
        hub.dim("network", "init", "--label", "hub")
        self.orchestrator = self.start_orchestrator()
        self.nodes: dict[Machine, Daemon] = {}

    def start_orchestrator(self) -> Daemon:
        """Start the orchestrator, at the ports that it had, and wait until it serves."""
        listen = f"{self.hub.address}:0"
        daemon = self.hub.start_dim("orchestrator", "start", "--listen", listen, "--door", listen, *self._options)
        daemon.next()
        return daemon

    def join(self, machine: Machine, *options: object) -> dict[str, Any]:
        """Invite a machine and let it join, by the two commands that people type."""
        invite = self.hub.dim("network", "invite", *options)["invite"]
        return machine.dim("network", "join", invite, "--label", label(machine))

    def start_node(self, machine: Machine, *options: object, engine: str = "echo") -> Daemon:
        """Start the node of a machine that has joined, with one engine: echo needs little memory."""
        self.nodes[machine] = machine.start_node("--name", label(machine), "--engine", engine, *options)
        return self.nodes[machine]

    def gather(self, members: Sequence[Machine], engine: str = "echo") -> None:
        """Let machines join and start their nodes, all at once, and wait until work may go to each."""
        with ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(self.join, members))
            list(pool.map(lambda machine: self.start_node(machine, engine=engine), members))
        for machine in members:
            self.wait_for(machine, "ELIGIBLE")

    def rows(self) -> dict[str, NodeRow]:
        """Give the hub's table of nodes, by label."""
        database = open_database(f"sqlite:///{self.hub.home / 'dim.db'}")
        return {row.label: row for row in NodeTable(database).rows()}

    def state(self, machine: Machine) -> str:
        """Give the state of a machine's node in the table; empty where it has none."""
        row = self.rows().get(label(machine))
        return row.state if row is not None else ""

    def wait_for(self, machine: Machine, state: str, deadline_s: float = WAIT_S) -> None:
        """Wait until a machine's node is in a state."""
        wait_until(
            lambda: self.state(machine) == state, f"node of {machine.address} {state}, {self.rows()}", deadline_s
        )
