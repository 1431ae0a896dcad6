"""A node daemon's life as others see it: one per home, and what it announces while it serves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from dim_pipelines.wire import lifetime
from dim_pipelines.wire.lifetime import UNIX_LIMIT, Stop, stopping_by_signal

__all__ = ["UNIX_LIMIT", "NodeAddress", "Stop", "announced", "locked", "socket_in", "stopping_by_signal"]


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """What a daemon announces once it serves; also the content of `node.json`.

    Attributes:
        address: for `open_channel`.
        key: the node's public key, `ed25519:…`.
        metrics: URL of `/metrics`; empty when it is not served.
        secure: where it speaks TLS, `HOST:PORT`; empty without a network.
        network: the network's id; empty without one.
        id: the node's IPNS name; empty without a network.
        reach: `direct` | `attached`; empty until it is known.
    """

    name: str
    address: str
    pid: int
    key: str
    metrics: str
    secure: str = ""
    network: str = ""
    id: str = ""
    reach: str = ""


@contextmanager
def socket_in(folder: Path) -> Iterator[str]:
    """Give the address of the daemon's socket in the folder, or in a short one where the path is too long for one."""
    with lifetime.socket_in(folder, "node.sock") as address:
        yield address


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the home for this daemon.

    Raises:
        ConfigurationError: another one runs there.
    """
    with lifetime.locked(folder, "node.lock", "a node daemon"):
        yield


@contextmanager
def announced(path: Path, address: NodeAddress) -> Iterator[Callable[[NodeAddress], None]]:
    """Keep the announcement in a file, written whole, while the daemon serves; gives what announces something else."""
    with lifetime.announced(path, asdict(address)):
        yield lambda other: lifetime.write_announcement(path, asdict(other))
