"""The seccomp filter of the engine process, as numbers, for x86_64 and aarch64.

A list of what is denied, not of what is allowed: torch, OpenMP and drivers use a wide and changing set of
syscalls, and files are Landlock's part. Denied calls fail with EPERM. Sources: the kernel's
`arch/x86/entry/syscalls/syscall_64.tbl`, `include/uapi/asm-generic/unistd.h`, seccomp(2).
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

Line = tuple[int, int, int, int]
"""One instruction of classic BPF: code, jump if true, jump if false, constant."""

# Classic BPF, linux/bpf_common.h and linux/seccomp.h.
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_KILL_PROCESS, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_X32: Final = 0x40000000

_CLONE_THREAD: Final = 0x10000
_O_TRUNC, _O_ACCMODE = 0o1000, 0o3
_PR_SET_PDEATHSIG: Final = 1
_MAP_TYPE, _MAP_SHARED, _MAP_ANONYMOUS = 0x0F, 0x01, 0x20
# Who gets a descriptor's signals, and which: F_SETOWN, F_SETSIG, F_SETOWN_EX (linux/fcntl.h), FIOSETOWN, SIOCSPGRP
# (linux/sockios.h).
_OWNER_COMMANDS: Final = (8, 10, 15)
_OWNER_REQUESTS: Final = (0x8901, 0x8902)
_WHOLE: Final = 0xFFFFFFFF

# Numbers that all architectures share (424 and above).
_SHARED: Final = {
    "pidfd_send_signal": 424,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_open": 434,
    "clone3": 435,
    "openat2": 437,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "mount_setattr": 442,
    "process_mrelease": 448,
    "fchmodat2": 452,
    "setxattrat": 463,
    "removexattrat": 466,
    "open_tree_attr": 467,
}
_X86_64: Final = _SHARED | {
    "open": 2, "mmap": 9, "ioctl": 16, "shmget": 29, "shmat": 30, "shmctl": 31, "socket": 41, "connect": 42,
    "accept": 43, "bind": 49, "listen": 50, "socketpair": 53, "clone": 56, "fork": 57, "vfork": 58, "execve": 59,
    "kill": 62,
    "semget": 64, "semop": 65, "semctl": 66, "msgget": 68, "msgsnd": 69, "msgrcv": 70, "msgctl": 71, "fcntl": 72,
    "truncate": 76, "chmod": 90,
    "fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94, "ptrace": 101, "syslog": 103, "rt_sigqueueinfo": 129,
    "utime": 132, "mknod": 133, "personality": 135, "setpriority": 141, "modify_ldt": 154, "prctl": 157,
    "adjtimex": 159, "chroot": 161, "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166, "swapon": 167,
    "swapoff": 168, "reboot": 169, "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173,
    "init_module": 175, "delete_module": 176, "quotactl": 179, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190,
    "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199, "tkill": 200, "sched_setaffinity": 203,
    "clock_settime": 227, "tgkill": 234, "utimes": 235, "mq_open": 240, "mq_unlink": 241, "kexec_load": 246,
    "add_key": 248, "request_key": 249, "keyctl": 250, "ioprio_set": 251, "migrate_pages": 256, "openat": 257,
    "mknodat": 259, "fchownat": 260, "futimesat": 261, "fchmodat": 268, "unshare": 272, "move_pages": 279,
    "utimensat": 280, "accept4": 288, "rt_tgsigqueueinfo": 297, "perf_event_open": 298, "fanotify_init": 300,
    "prlimit64": 302, "name_to_handle_at": 303, "open_by_handle_at": 304, "clock_adjtime": 305, "setns": 308,
    "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "finit_module": 313, "sched_setattr": 314,
    "memfd_create": 319, "kexec_file_load": 320, "bpf": 321, "execveat": 322, "userfaultfd": 323, "pivot_root": 155,
    "sched_setparam": 142, "sched_setscheduler": 144, "semtimedop": 220,
}  # fmt: skip
_AARCH64: Final = _SHARED | {
    "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16,
    "fcntl": 25, "ioctl": 29, "mmap": 222, "memfd_create": 279,
    "ioprio_set": 30, "mknodat": 33, "umount2": 39, "mount": 40, "pivot_root": 41, "truncate": 45, "chroot": 51,
    "fchmod": 52, "fchmodat": 53, "fchownat": 54, "fchown": 55, "openat": 56, "quotactl": 60, "utimensat": 88,
    "acct": 89, "personality": 92, "unshare": 97, "kexec_load": 104, "init_module": 105, "delete_module": 106,
    "clock_settime": 112, "syslog": 116, "ptrace": 117, "sched_setparam": 118, "sched_setscheduler": 119,
    "sched_setaffinity": 122, "kill": 129, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "setpriority": 140,
    "reboot": 142, "sethostname": 161, "setdomainname": 162, "prctl": 167, "settimeofday": 170, "adjtimex": 171,
    "mq_open": 180, "mq_unlink": 181, "msgget": 186, "msgctl": 187, "msgrcv": 188, "msgsnd": 189, "semget": 190,
    "semctl": 191, "semtimedop": 192, "semop": 193, "shmget": 194, "shmctl": 195, "shmat": 196, "socket": 198,
    "bind": 200, "listen": 201, "accept": 202, "connect": 203, "socketpair": 199, "add_key": 217, "request_key": 218,
    "keyctl": 219, "clone": 220, "execve": 221, "swapon": 224, "swapoff": 225, "migrate_pages": 238,
    "move_pages": 239, "rt_tgsigqueueinfo": 240, "perf_event_open": 241, "accept4": 242, "prlimit64": 261,
    "fanotify_init": 262, "name_to_handle_at": 264, "open_by_handle_at": 265, "clock_adjtime": 266, "setns": 268,
    "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "finit_module": 273, "sched_setattr": 274,
    "bpf": 280, "execveat": 281, "userfaultfd": 282, "kexec_file_load": 294,
}  # fmt: skip

# Filtered by an argument, or answered with ENOSYS so that libc takes the older call, which can be filtered.
_BY_ARGUMENT: Final = frozenset(
    {
        "open",
        "openat",
        "clone",
        "prctl",
        "kill",
        "tgkill",
        "prlimit64",
        "sched_setaffinity",
        "fcntl",
        "ioctl",
        "mmap",
        "memfd_create",
    }
)
_NOT_HERE: Final = frozenset({"clone3", "openat2"})


@dataclass(frozen=True, slots=True)
class Architecture:
    """A processor's audit number (linux/audit.h) and its syscall numbers by name."""

    audit: int
    numbers: dict[str, int]

    def program(self, pid: int, *, shared_memory: bool = False) -> list[Line]:
        """Give the filter for the process `pid`, which stays able to signal itself.

        Args:
            pid: the process.
            shared_memory: let it make shared memory of no file, which RLIMIT_DATA does not count.
        """
        lines: list[Line] = [
            (_LOAD, 0, 0, _ARCH_AT),
            (_JUMP_EQUAL, 1, 0, self.audit),
            (_RETURN, 0, 0, _KILL_PROCESS),
            (_LOAD, 0, 0, _NUMBER_AT),
            (_JUMP_AT_LEAST, 0, 1, _X32),
            (_RETURN, 0, 0, _KILL_PROCESS),
        ]
        for name, number in sorted(self.numbers.items()):
            if name in _BY_ARGUMENT:
                continue
            reason = errno.ENOSYS if name in _NOT_HERE else errno.EPERM
            lines += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | reason)]
        numbers = self.numbers
        # O_TRUNC empties a file that is opened for reading, or with the access mode 3 for neither reading nor
        # writing; Landlock sees both only from ABI 3 on.
        for mode in (0, _O_ACCMODE):
            if "open" in numbers:
                lines += _deny_flags(numbers["open"], 1, _O_TRUNC | _O_ACCMODE, _O_TRUNC | mode)
            lines += _deny_flags(numbers["openat"], 2, _O_TRUNC | _O_ACCMODE, _O_TRUNC | mode)
        # Who gets the signals of the inherited socket: any process of the user, where Landlock is below ABI 6.
        for command in _OWNER_COMMANDS:
            lines += _deny_flags(numbers["fcntl"], 1, _WHOLE, command)
        for request in _OWNER_REQUESTS:
            lines += _deny_flags(numbers["ioctl"], 1, _WHOLE, request)
        if not shared_memory:
            shared = _MAP_SHARED | _MAP_ANONYMOUS
            lines += _deny_flags(numbers["mmap"], 3, _MAP_TYPE | _MAP_ANONYMOUS, shared)
            lines += [(_JUMP_EQUAL, 0, 1, numbers["memfd_create"]), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
        lines += _deny_flags(numbers["clone"], 0, _CLONE_THREAD, 0)
        lines += _deny_flags(numbers["prctl"], 0, _WHOLE, _PR_SET_PDEATHSIG)
        lines += _only(numbers["kill"], pid)
        lines += _only(numbers["tgkill"], pid)
        lines += _only(numbers["prlimit64"], 0, pid)
        lines += _only(numbers["sched_setaffinity"], 0, pid)
        return [*lines, (_RETURN, 0, 0, _ALLOW)]


def _deny_flags(number: int, argument: int, mask: int, value: int) -> Iterator[Line]:
    """Deny the call when `argument & mask` is `value`."""
    yield (_JUMP_EQUAL, 0, 5, number)
    yield (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument)
    yield (_AND, 0, 0, mask)
    yield (_JUMP_EQUAL, 0, 1, value)
    yield (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    yield (_LOAD, 0, 0, _NUMBER_AT)


def _only(number: int, *values: int) -> Iterator[Line]:
    """Deny the call unless its first argument is one of the values."""
    yield (_JUMP_EQUAL, 0, 3 + len(values), number)
    yield (_LOAD, 0, 0, _ARGUMENTS_AT)
    for position, value in enumerate(values):
        yield (_JUMP_EQUAL, len(values) - position, 0, value)
    yield (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    yield (_LOAD, 0, 0, _NUMBER_AT)


_KNOWN: Final = {
    "x86_64": Architecture(0xC000003E, _X86_64),
    "aarch64": Architecture(0xC00000B7, _AARCH64),
}


def architecture() -> Architecture | None:
    """Give this machine's architecture; None where there is no table, or the interpreter has 32 bits."""
    if struct.calcsize("P") != 8:
        return None
    return _KNOWN.get(platform.machine())
