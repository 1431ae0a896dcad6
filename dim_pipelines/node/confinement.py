"""Shut a process in before it runs a stranger's program: Landlock, seccomp and resource limits.

Needs no privileges. `confine` is called in the engine process while it has one thread and before numpy,
pyarrow or torch are imported. What stays possible: computing, threads, reading what `readable` names,
writing the scratch folder, and the descriptors that were inherited. What does not: other files, new
sockets, processes, signals to others, other processes' memory, mounts, namespaces, kernel interfaces.
Not promised: hiding that a file exists (`stat`), nor protection from a fault in the kernel itself.

Sources: landlock(7), https://docs.kernel.org/userspace-api/landlock.html, seccomp(2), and the kernel's
syscall tables for x86_64 and arm64. Fails closed: any step that fails raises.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dim_pipelines.errors import ConfigurationError
from dim_pipelines.node.syscalls import Architecture, architecture

LANDLOCK_CREATE: Final = 444
LANDLOCK_ADD_RULE: Final = 445
LANDLOCK_RESTRICT: Final = 446
# Landlock's file rights by bit, and the ABI that brought the later ones.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_FS_RIGHTS_OF_ABI: Final = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_IOCTL_DEV: Final = 1 << 15
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER: Final = 2
_SIGKILL: Final = 9


class _RulesetAttr(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("access", ctypes.c_uint64), ("fd", ctypes.c_int32))


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction)))


@dataclass(frozen=True, slots=True)
class Limits:
    """What the process may use.

    Attributes:
        memory_bytes: private memory (RLIMIT_DATA); 0 sets no limit (a CUDA context maps far more than it uses).
            Shared memory is not counted by it: `confine` denies it, and the daemon watches what is in use.
        file_bytes: the largest file it may write into its scratch folder.
        descriptors: how many descriptors it may hold.
    """

    memory_bytes: int = 0
    file_bytes: int = 4 << 30
    descriptors: int = 256


def unavailable() -> str:
    """Say why a process cannot be confined on this machine; empty when it can.

    Wanted: Linux on x86_64 or aarch64, Landlock ABI 1 or later, seccomp filters.
    """
    if sys.platform != "linux":
        return f"{platform.system()} has no Landlock"
    if architecture() is None:
        return f"no syscall table for {platform.machine()}"
    if landlock_abi() < 1:
        return "this kernel has no Landlock"
    libc = _libc()
    # With a null program a kernel that has seccomp filters answers EFAULT, one without EINVAL.
    libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, None, 0, 0)
    if ctypes.get_errno() != 14:
        return "this kernel has no seccomp filters"
    return ""


def landlock_abi() -> int:
    """Give the kernel's Landlock ABI, 0 where there is none."""
    return max(0, int(_libc().syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))))


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; ends at once when it has ended already."""
    _libc().prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(1)


def system_readable() -> tuple[Path, ...]:
    """List what every engine process may read: the interpreter, its libraries, and facts about the machine.

    Not all of /proc: it would show the environment of the parent.
    """
    named = [
        sys.prefix,
        sys.base_prefix,
        sys.exec_prefix,
        "/usr",
        "/lib",
        "/lib64",
        "/etc/ld.so.cache",
        "/proc/self",
        "/proc/meminfo",
        "/proc/cpuinfo",
        "/proc/sys/vm/overcommit_memory",
        "/sys/devices/system/cpu",
        "/sys/devices/system/node",
        "/dev/urandom",
        *(entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")),
    ]
    return tuple(Path(name) for name in dict.fromkeys(named) if Path(name) != Path("/"))


def cuda_nodes() -> tuple[Path, ...]:
    """List the device nodes that CUDA needs to open."""
    return tuple(sorted(path for path in Path("/dev").glob("nvidia*") if not path.is_dir()))


def exposed(secret: Path, readable: Iterable[Path]) -> Path | None:
    """Give the readable path that `secret` lies beneath, None when it is out of reach."""
    real = secret.resolve()
    for path in readable:
        if real.is_relative_to(path.resolve()):
            return path
    return None


def limit_resources(limits: Limits) -> None:
    """Set the resource limits of this process; they hold for good."""
    wanted = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, limits.descriptors),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
    ]
    if limits.memory_bytes:
        wanted.append((resource.RLIMIT_DATA, limits.memory_bytes))
    for kind, value in wanted:
        hard = resource.getrlimit(kind)[1]
        lowest = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (lowest, lowest))


def confine(readable: Sequence[Path], writable: Sequence[Path], devices: Sequence[Path] = ()) -> None:
    """Shut this process in for good.

    Args:
        readable: files and folders it may read and map; ones that do not exist are passed over.
        writable: folders in which it may do everything but execute.
        devices: device nodes it may open and talk to; without any it can make no shared memory.

    Raises:
        ConfigurationError: the kernel refused a step; the process must end.
    """
    why = unavailable()
    if why:
        raise ConfigurationError(f"the engine process cannot be confined: {why}")
    here = architecture()
    assert here is not None  # `unavailable` has just said so
    abi = landlock_abi()
    libc = _libc()
    _landlock(libc, abi, readable, writable, devices)
    # Drivers of devices share memory with them; a process without a device has no need of it.
    _seccomp(libc, here, shared_memory=bool(devices))


def _landlock(
    libc: ctypes.CDLL, abi: int, readable: Sequence[Path], writable: Sequence[Path], devices: Sequence[Path]
) -> None:
    rights = (1 << _FS_RIGHTS_OF_ABI[min(abi, 5)]) - 1
    attributes = _RulesetAttr(rights, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = _checked(
        "landlock_create_ruleset", libc.syscall(LANDLOCK_CREATE, ctypes.byref(attributes), ctypes.c_size_t(size), 0)
    )
    try:
        for path in readable:
            _allow(libc, ruleset, path, _EXECUTE | _READ_FILE | _READ_DIR)
        for path in writable:
            _allow(libc, ruleset, path, rights & ~_EXECUTE & ~_IOCTL_DEV)
        _allow(libc, ruleset, Path("/dev/null"), _READ_FILE | _WRITE_FILE)
        for path in devices:
            _allow(libc, ruleset, path, (_READ_FILE | _WRITE_FILE | _IOCTL_DEV) & rights)
        _checked("no_new_privs", libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _checked("landlock_restrict_self", libc.syscall(LANDLOCK_RESTRICT, ruleset, 0))
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not path.is_dir():
            rights &= ~_READ_DIR
        rule = _PathBeneath(rights, descriptor)
        _checked(f"landlock_add_rule for {path}", libc.syscall(LANDLOCK_ADD_RULE, ruleset, 1, ctypes.byref(rule), 0))
    finally:
        os.close(descriptor)


def _seccomp(libc: ctypes.CDLL, here: Architecture, *, shared_memory: bool) -> None:
    code = here.program(os.getpid(), shared_memory=shared_memory)
    instructions = (_Instruction * len(code))(*(_Instruction(*line) for line in code))
    program = _Program(len(code), instructions)
    _checked("seccomp", libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0))


def _checked(what: str, answer: int) -> int:
    if answer < 0:
        error = ctypes.get_errno()
        raise ConfigurationError(f"the engine process cannot be confined: {what}: {os.strerror(error)}")
    return answer


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
