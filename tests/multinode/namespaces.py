"""Machines for tests: network namespaces whose only way to each other is a delay line, and nftables that cut them off.

A namespace here has no name in /run/netns and no process: descriptors keep it, so that nothing is left behind however
the tests end. Programs are started in it by nsenter. Its one device is a TUN whose packets go through `delay_line.py`.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

DELAY_LINE = Path(__file__).with_name("delay_line.py")
NETWORK = "10.77.0"
DEVICE = "dim0"

_CLONE_NEWNET = 0x4000_0000
_TUNSETIFF = 0x4004_54CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000

_CUT = """
table inet cut {
  chain in { type filter hook input priority -10; policy drop; iif lo accept; }
  chain out { type filter hook output priority -10; policy drop; oif lo accept; }
}
"""
_NO_INBOUND = """
table inet nat_like {
  chain in { type filter hook input priority 0; policy drop; iif lo accept; ct state established,related accept; }
}
"""


def why_not() -> str:
    """Say why namespaces cannot be made here; empty when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    return ""


class Space:
    """One namespace: a machine of the test.

    Attributes:
        number: 1, 2, 3 …
        address: its IPv4 address.
    """

    def __init__(self, number: int, mtu: int) -> None:
        """Make the namespace and its device, and bring both up."""
        self.number = number
        self.address = f"{NETWORK}.{number}"
        self.namespace, self.device = _make()
        self._ip(f"link set lo up\nlink set {DEVICE} mtu {mtu} up\naddress add {self.address}/24 dev {DEVICE}\n")

    def command(self, *arguments: object) -> list[str]:
        """Give the command line that runs a program in here; pass `descriptors` on with it."""
        return ["nsenter", f"--net=/proc/self/fd/{self.namespace}", "--", *(str(each) for each in arguments)]

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What `pass_fds` of the process must name."""
        return (self.namespace,)

    def run(self, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program in here to its end."""
        options = {"capture_output": True, "text": True, "check": True} | options
        return subprocess.run(self.command(*arguments), pass_fds=self.descriptors, **options)

    def start(self, *arguments: object, **options: Any) -> subprocess.Popen[Any]:
        """Start a program in here; its process id is that of nsenter, which becomes the program."""
        return subprocess.Popen(self.command(*arguments), pass_fds=self.descriptors, **options)

    def cut(self) -> None:
        """Let no packet in or out, except on the loopback device: whoever waits for it hears nothing."""
        self._nft(_CUT)

    def mend(self) -> None:
        """End the cut."""
        self._nft("delete table inet cut\n")

    def refuse_inbound(self) -> None:
        """Drop what comes in unless it answers something that went out, as a home router does."""
        self._nft(_NO_INBOUND)

    def close(self) -> None:
        """Let go of the namespace; it ends with its last process."""
        os.close(self.device)
        os.close(self.namespace)

    def _ip(self, lines: str) -> None:
        self.run("ip", "-batch", "-", input=lines)

    def _nft(self, rules: str) -> None:
        self.run("nft", "-f", "-", input=rules)


def _make() -> tuple[int, int]:
    """Make a namespace with a TUN device in a thread, the one thing that may change namespaces by itself.

    Returns:
        Descriptors of the namespace and of the device.
    """
    made: list[int] = []
    failed: list[OSError] = []

    def work() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            if libc.unshare(_CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), "unshare")
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
            made.append(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
            request = struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI)
            fcntl.ioctl(made[1], _TUNSETIFF, request)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=work, name="namespace")
    thread.start()
    thread.join()
    if failed:
        for descriptor in made:
            os.close(descriptor)
        raise failed[0]
    return made[0], made[1]


class Spaces(Sequence[Space]):
    """Machines that reach each other, and the line between them."""

    def __init__(self, spaces: list[Space], orders: IO[str], answers: IO[str]) -> None:
        self._spaces = spaces
        self._orders = orders
        self._answers = answers

    def __getitem__(self, index: Any) -> Any:
        return self._spaces[index]

    def __len__(self) -> int:
        return len(self._spaces)

    def line(self, **wanted: float) -> dict[str, int]:
        """Set `delay_ms` (one way) and `loss` (0..1) of every packet, and give the line's counters."""
        self._orders.write(json.dumps(wanted) + "\n")
        self._orders.flush()
        counters: dict[str, int] = json.loads(self._answers.readline())
        return counters


@contextmanager
def namespaces(
    count: int, *, delay_ms: float = 0.0, loss: float = 0.0, seed: int = 1, mtu: int = 1500
) -> Iterator[Spaces]:
    """Run `count` namespaces and the line between them while the block runs.

    Args:
        count: how many; their addresses are 10.77.0.1, 10.77.0.2 …
        delay_ms: how long a packet is under way; a round trip takes twice that.
        loss: share of packets that are lost.
        seed: of the losses.
        mtu: largest packet, in bytes.
    """
    with ExitStack() as stack:
        spaces = []
        for number in range(1, count + 1):
            spaces.append(Space(number, mtu))
            stack.callback(spaces[-1].close)
        devices = [f"{space.address}={space.device}" for space in spaces]
        line = subprocess.Popen(
            [sys.executable, "-I", str(DELAY_LINE), str(seed), *devices],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[space.device for space in spaces],
        )
        stack.callback(_end, line)
        assert line.stdin is not None and line.stdout is not None
        made = Spaces(spaces, line.stdin, line.stdout)
        made.line(delay_ms=delay_ms, loss=loss)
        yield made


MakeSpaces = Callable[..., AbstractContextManager[Spaces]]
"""`namespaces`, as the fixture `make_spaces` gives it."""


def _end(line: subprocess.Popen[str]) -> None:
    assert line.stdin is not None and line.stdout is not None
    line.stdin.close()
    try:
        line.wait(10)
    except subprocess.TimeoutExpired:
        line.kill()
        line.wait()
    line.stdout.close()
