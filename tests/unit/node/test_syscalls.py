"""The filter, run in a small interpreter of classic BPF: what it answers for calls of both processors."""

from __future__ import annotations

import platform
import struct

import pytest

from dim_pipelines.node import syscalls
from dim_pipelines.node.syscalls import Architecture, architecture

PID = 4242
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
X86, ARM = syscalls._KNOWN["x86_64"], syscalls._KNOWN["aarch64"]


OUTWARD = """
socket socketpair connect bind listen accept accept4 ptrace process_vm_readv process_vm_writev io_uring_setup bpf mount
unshare setns execve execveat tkill pidfd_open pidfd_getfd fchmod fchownat keyctl shmget mq_open userfaultfd
perf_event_open open_by_handle_at truncate
"""


def answer(
    here: Architecture, number: int, *arguments: int, audit: int | None = None, shared_memory: bool = False
) -> int:
    data = struct.pack(
        "<iIQ6Q", number, here.audit if audit is None else audit, 0, *arguments, *[0] * (6 - len(arguments))
    )
    program, at, accumulator = here.program(PID, shared_memory=shared_memory), 0, 0
    while True:
        code, jump, otherwise, constant = program[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, constant)
        elif code == 0x54:
            accumulator &= constant
        elif code == 0x15:
            at += jump if accumulator == constant else otherwise
        elif code == 0x35:
            at += jump if accumulator >= constant else otherwise
        else:
            assert code == 0x06
            return constant


@pytest.mark.parametrize("here", [X86, ARM], ids=["x86_64", "aarch64"])
def test_calls_that_lead_out_are_denied(here: Architecture) -> None:
    for name in OUTWARD.split():
        assert answer(here, here.numbers[name]) == EPERM, name
    for name in ("clone3", "openat2"):
        assert answer(here, here.numbers[name]) == ENOSYS
    assert len(here.program(PID)) < 4096


@pytest.mark.parametrize("here", [X86, ARM], ids=["x86_64", "aarch64"])
def test_calls_are_told_apart_by_their_arguments(here: Architecture) -> None:
    numbers = here.numbers
    assert answer(here, numbers["kill"], PID, 9) == ALLOW
    assert answer(here, numbers["kill"], PID + 1, 9) == EPERM
    assert answer(here, numbers["kill"], 0, 9) == EPERM
    assert answer(here, numbers["tgkill"], PID, PID + 5, 9) == ALLOW
    assert answer(here, numbers["tgkill"], 1, 1, 9) == EPERM
    assert answer(here, numbers["clone"], 0x3D0F00) == ALLOW  # what pthread_create asks for
    assert answer(here, numbers["clone"], 17) == EPERM  # SIGCHLD alone: a process
    assert answer(here, numbers["prlimit64"], 0) == ALLOW and answer(here, numbers["prlimit64"], PID) == ALLOW
    assert answer(here, numbers["prlimit64"], 1) == EPERM
    assert answer(here, numbers["prctl"], 1) == EPERM and answer(here, numbers["prctl"], 15) == ALLOW
    assert answer(here, numbers["openat"], 3, 0, 0o1000) == EPERM
    assert answer(here, numbers["openat"], 3, 0, 0o1001) == ALLOW
    assert answer(here, numbers["openat"], 3, 0, 0o1003) == EPERM  # neither reading nor writing, and empties it
    assert answer(here, numbers["openat"], 3, 0, 0) == ALLOW
    assert answer(here, numbers["openat"], 3, 0, 0o3) == ALLOW


@pytest.mark.parametrize("here", [X86, ARM], ids=["x86_64", "aarch64"])
def test_nobody_else_is_made_the_owner_of_a_descriptor(here: Architecture) -> None:
    for command in (8, 10, 15):
        assert answer(here, here.numbers["fcntl"], 3, command, PID) == EPERM
    assert answer(here, here.numbers["fcntl"], 3, 8 | 1 << 32, PID) == EPERM  # the kernel reads 32 bits
    for request in (0x8901, 0x8902):
        assert answer(here, here.numbers["ioctl"], 3, request) == EPERM
    for command in (1, 2, 3, 4, 1030):  # F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC
        assert answer(here, here.numbers["fcntl"], 3, command) == ALLOW
    for request in (0x5401, 0x5421):  # TCGETS, FIONBIO
        assert answer(here, here.numbers["ioctl"], 3, request) == ALLOW


@pytest.mark.parametrize("here", [X86, ARM], ids=["x86_64", "aarch64"])
def test_memory_that_no_limit_counts_is_only_for_devices(here: Architecture) -> None:
    private, shared, shared_file = 0x22, 0x21, 0x01
    numbers = here.numbers
    assert answer(here, numbers["mmap"], 0, 4096, 3, private) == ALLOW
    assert answer(here, numbers["mmap"], 0, 4096, 3, shared_file) == ALLOW
    assert answer(here, numbers["mmap"], 0, 4096, 3, shared) == EPERM
    assert answer(here, numbers["memfd_create"], 0, 0) == EPERM
    assert answer(here, numbers["mmap"], 0, 4096, 3, shared, shared_memory=True) == ALLOW
    assert answer(here, numbers["memfd_create"], 0, 0, shared_memory=True) == ALLOW


def test_other_tables_of_the_same_processor_end_the_process() -> None:
    assert answer(X86, 41, audit=0x40000003) == KILL  # 32-bit calls have other numbers
    assert answer(X86, 0x40000029) == KILL  # x32
    assert answer(X86, 0) == ALLOW and answer(X86, X86.numbers["fork"]) == EPERM
    assert answer(X86, X86.numbers["open"], 0, 0o1000) == EPERM
    assert answer(X86, X86.numbers["open"], 0, 0o1003) == EPERM and answer(X86, X86.numbers["open"], 0, 0o3) == ALLOW


def test_processors_without_a_table_have_no_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert architecture() is None
