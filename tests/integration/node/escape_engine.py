"""An engine that tries to break out, for `test_confinement`; production knows no way to load it.

`boot` gives the text that the engine host runs instead of its own: the same `main`, with this engine beside.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import stat
import struct
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dim_pipelines.node.engines.memory import ProcessMemory

TRIES: dict[str, Callable[[Mapping[str, Any]], object]] = {}


def boot(targets: Mapping[str, Any], abi: int | None = None) -> str:
    """Give the text; with `abi` the process believes that the kernel has this Landlock ABI."""
    source = Path(__file__).read_text()
    older = "" if abi is None else f"import dim_pipelines.node.confinement as c_; c_.landlock_abi = lambda: {abi}\n"
    return (
        "import sys, json; c = json.loads(sys.argv[1]); sys.path[:] = c['sys_path']\n"
        f"{older}"
        "from dim_pipelines.node.engine_process import main\n"
        "def escape(device, threads):\n"
        "    names = {'__name__': 'escape'}\n"
        f"    exec(compile({source!r}, 'escape_engine.py', 'exec'), names)\n"
        f"    return names['EscapeEngine'](json.loads({json.dumps(dict(targets))!r}))\n"
        "main(c, {'escape': escape})\n"
    )


def attempt(action: Callable[[Mapping[str, Any]], object]) -> Callable[[Mapping[str, Any]], object]:
    TRIES[action.__name__] = action
    return action


@attempt
def read_the_key(targets: Mapping[str, Any]) -> None:
    assert Path(targets["key"]).read_bytes()


@attempt
def list_the_home(targets: Mapping[str, Any]) -> None:
    assert list(Path(targets["home"]).iterdir())


@attempt
def read_another_file(targets: Mapping[str, Any]) -> None:
    Path("/etc/passwd").read_bytes()


@attempt
def read_the_parents_environment(targets: Mapping[str, Any]) -> None:
    assert Path(f"/proc/{os.getppid()}/environ").read_bytes()


@attempt
def list_the_parents_descriptors(targets: Mapping[str, Any]) -> None:
    assert list(Path(f"/proc/{os.getppid()}/fd").iterdir())


@attempt
def connect_by_tcp(targets: Mapping[str, Any]) -> None:
    socket.create_connection(("127.0.0.1", targets["tcp"]), 2).close()


@attempt
def listen_by_tcp(targets: Mapping[str, Any]) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()


@attempt
def send_by_udp(targets: Mapping[str, Any]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
        sending.sendto(b"x", ("127.0.0.1", targets["udp"]))


@attempt
def connect_to_a_unix_socket(targets: Mapping[str, Any]) -> None:
    with socket.socket(socket.AF_UNIX) as connecting:
        connecting.connect(targets["unix"])


@attempt
def send_a_datagram_from_a_pair(targets: Mapping[str, Any]) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        one.sendto(b"x", targets["datagram"])


@attempt
def run_a_program(targets: Mapping[str, Any]) -> None:
    subprocess.run(["/bin/true"], check=True)


@attempt
def fork(targets: Mapping[str, Any]) -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


@attempt
def signal_the_parent(targets: Mapping[str, Any]) -> None:
    os.kill(os.getppid(), 0)


@attempt
def signal_a_thread_of_the_parent(targets: Mapping[str, Any]) -> None:
    if ctypes.CDLL(None, use_errno=True).tgkill(os.getppid(), os.getppid(), 0):
        raise OSError(ctypes.get_errno(), "tgkill")


@attempt
def send_a_signal_by_descriptor(targets: Mapping[str, Any]) -> None:
    descriptor = os.pidfd_open(os.getppid())
    signal.pidfd_send_signal(descriptor, 0)


@attempt
def limit_the_parent(targets: Mapping[str, Any]) -> None:
    resource.prlimit(os.getppid(), resource.RLIMIT_CORE)


@attempt
def slow_the_parent(targets: Mapping[str, Any]) -> None:
    os.setpriority(os.PRIO_PROCESS, os.getppid(), os.getpriority(os.PRIO_PROCESS, os.getppid()))


@attempt
def outlive_the_parent(targets: Mapping[str, Any]) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(1, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # the test process must not leave it behind


@attempt
def write_elsewhere(targets: Mapping[str, Any]) -> None:
    Path(targets["elsewhere"]).write_text("x")


@attempt
def write_into_the_models(targets: Mapping[str, Any]) -> None:
    Path(targets["model"]).write_text("x")


@attempt
def empty_a_file_by_reading(targets: Mapping[str, Any]) -> None:
    os.close(os.open(targets["model"], os.O_RDONLY | os.O_TRUNC))


@attempt
def empty_a_file_without_access(targets: Mapping[str, Any]) -> None:
    os.close(os.open(targets["model"], os.O_ACCMODE | os.O_TRUNC))


def inherited_socket() -> int:
    for descriptor in range(3, 256):
        try:
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                return descriptor
        except OSError:
            continue
    raise AssertionError("no socket was inherited")


# None of these sets O_ASYNC: without the walls they succeed, and must not signal anybody.
@attempt
def own_a_descriptor_for_the_parent(targets: Mapping[str, Any]) -> None:
    fcntl.fcntl(inherited_socket(), fcntl.F_SETOWN, os.getppid())
    fcntl.fcntl(inherited_socket(), fcntl.F_SETOWN, 0)


@attempt
def own_a_descriptor_for_a_thread_of_the_parent(targets: Mapping[str, Any]) -> None:
    fcntl.fcntl(inherited_socket(), 15, struct.pack("ii", 0, os.getppid()))  # F_SETOWN_EX, F_OWNER_TID
    fcntl.fcntl(inherited_socket(), 15, struct.pack("ii", 0, 0))


@attempt
def choose_a_descriptors_signal(targets: Mapping[str, Any]) -> None:
    fcntl.fcntl(inherited_socket(), 10, signal.SIGKILL)  # F_SETSIG
    fcntl.fcntl(inherited_socket(), 10, 0)


@attempt
def own_a_socket_for_the_parent(targets: Mapping[str, Any]) -> None:
    fcntl.ioctl(inherited_socket(), 0x8901, struct.pack("i", os.getppid()))  # FIOSETOWN
    fcntl.ioctl(inherited_socket(), 0x8901, struct.pack("i", 0))


@attempt
def own_a_socket_for_the_parents_group(targets: Mapping[str, Any]) -> None:
    fcntl.ioctl(inherited_socket(), 0x8902, struct.pack("i", os.getppid()))  # SIOCSPGRP
    fcntl.ioctl(inherited_socket(), 0x8902, struct.pack("i", 0))


@attempt
def widen_the_keys_mode(targets: Mapping[str, Any]) -> None:
    Path(targets["key"]).chmod(0o644)


@attempt
def set_a_files_time(targets: Mapping[str, Any]) -> None:
    os.utime(targets["key"])


@attempt
def share_memory(targets: Mapping[str, Any]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    segment = libc.shmget(0, 4096, 0o600 | 0o1000)
    if segment < 0:
        raise OSError(ctypes.get_errno(), "shmget")
    libc.shmctl(segment, 0, None)


@attempt
def share_memory_without_a_file(targets: Mapping[str, Any]) -> None:
    mmap.mmap(-1, 4096).close()


@attempt
def keep_memory_in_a_descriptor(targets: Mapping[str, Any]) -> None:
    os.close(os.memfd_create("x"))


# What must go on working.
@attempt
def ok_write_scratch(targets: Mapping[str, Any]) -> None:
    path = Path(os.environ["TMPDIR"], "x")
    path.write_text("x")
    path.unlink()


@attempt
def ok_read_model(targets: Mapping[str, Any]) -> None:
    Path(targets["model"]).read_bytes()


@attempt
def ok_thread(targets: Mapping[str, Any]) -> None:
    ran = threading.Event()
    thread = threading.Thread(target=ran.set)
    thread.start()
    thread.join()
    assert ran.is_set()


@attempt
def ok_signal_itself(targets: Mapping[str, Any]) -> None:
    os.kill(os.getpid(), 0)


class EscapeModel:
    def __init__(self, results: list[str]) -> None:
        self._results = results

    def run(self, inputs: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
        rows = len(next(iter(inputs.values())))
        text = "\n".join(self._results).encode()
        return {"y": np.array([text] * rows, dtype=object)}

    def close(self) -> None:
        pass


class EscapeEngine(ProcessMemory):
    name = "escape"

    def __init__(self, targets: Mapping[str, Any]) -> None:
        super().__init__()
        self._targets = targets

    def numerics(self) -> str:
        return "escape"

    def load(self, folder: Path, description: object) -> EscapeModel:
        return EscapeModel([f"{name}={self._try(action)}" for name, action in TRIES.items()])

    def _try(self, action: Callable[[Mapping[str, Any]], object]) -> str:
        try:
            action(self._targets)
        except OSError as error:
            return f"denied {error.errno}"
        return "done"
