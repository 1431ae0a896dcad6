"""Starting a gRPC server as all of DIM's are: health, reflection, sizes by policy, the one chain.

A server listens locally in plaintext (a caller there is the machine's own), with TLS for others, or both.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from dim_pipelines.errors import ConfigurationError
from dim_pipelines.telemetry.metrics import RpcMetrics
from dim_pipelines.wire.address import Address
from dim_pipelines.wire.channel import SERVER_OPTIONS
from dim_pipelines.wire.interceptors import ServerChain
from dim_pipelines.wire.tls import ServerTls, server_credentials

Register = Callable[[grpc.aio.Server], Sequence[str]]
"""Adds services to a server and gives their full names."""

_DOOR_OPTIONS: Final = {"grpc.max_receive_message_length": 64 << 10, "grpc.max_concurrent_streams": 16}
"""What strangers may have a server hold: a request to join has some 10 KiB at most, and comes alone."""


@dataclass(frozen=True, slots=True)
class SecureListener:
    """Where a server speaks TLS.

    Attributes:
        listen: `HOST:PORT` of this machine, `0.0.0.0` or `[::]` for all of its addresses; port 0 takes a free one.
        tls: what it shows and whom it lets in.
        door: whether callers show no certificate and are served nothing but the methods for anybody.
    """

    listen: str
    tls: ServerTls
    door: bool = False


class RpcServer:
    """A started server.

    Attributes:
        address: where it listens in plaintext; empty when it does not.
        secure_address: where it speaks TLS; empty when it does not.
    """

    def __init__(self, server: grpc.aio.Server, services: Sequence[str]) -> None:
        """Use `start`."""
        self._server = server
        self._services = ("", *services)
        self.address = ""
        self.secure_address = ""
        self.health = HealthServicer()

    @classmethod
    async def start(
        cls,
        listen: str,
        register: Register,
        metrics: RpcMetrics,
        *,
        unbounded: frozenset[str] = frozenset(),
        secure: SecureListener | None = None,
    ) -> RpcServer:
        """Bind, add the services and serve.

        Args:
            listen: `unix:PATH`, or `HOST:PORT` on loopback; port 0 takes a free one; empty: not in plaintext.
            register: adds the services.
            metrics: where RPCs are counted.
            unbounded: unary methods without a default deadline.
            secure: where TLS is spoken, if anywhere.

        Raises:
            ConfigurationError: an address is not local, is in use, or cannot be bound.
        """
        door = bool(secure and secure.door)
        chain = ServerChain(metrics, unbounded, secure.tls.guard if secure else None, door=door)
        options = dict(SERVER_OPTIONS) | (_DOOR_OPTIONS if door else {})
        server = grpc.aio.server(interceptors=[chain], options=list(options.items()))
        names = list(register(server))
        made = cls(server, names)
        health_pb2_grpc.add_HealthServicer_to_server(made.health, server)
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
        if listen:
            made.address = _bind(server, Address.parse(listen), None)
        if secure:
            credentials = server_credentials(secure.tls, door=secure.door)
            made.secure_address = _bind(server, Address.parse(secure.listen, secure=True), credentials)
        await server.start()
        await made.serving(True)
        return made

    async def serving(self, yes: bool) -> None:
        """Tell health checks whether new work is welcome."""
        status = health_pb2.HealthCheckResponse.SERVING if yes else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in self._services:
            await self.health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """Take no new RPCs, give those under way some seconds, and end."""
        await self._server.stop(grace_s)
        if self.address.startswith("unix:"):
            _unlink(Path(self.address.removeprefix("unix:")))


def _bind(server: grpc.aio.Server, address: Address, credentials: grpc.ServerCredentials | None) -> str:
    _check_free(address)
    # The socket is born with the umask's mode: nobody may connect before it could be narrowed.
    before = os.umask(0o177) if address.path else None
    try:
        if credentials is None:
            port = server.add_insecure_port(str(address))
        else:
            port = server.add_secure_port(str(address), credentials)
    except RuntimeError as error:
        raise ConfigurationError(f"cannot listen on {address}", hint="choose another address") from error
    finally:
        if before is not None:
            os.umask(before)
    return str(address) if address.path else str(Address(host=address.host, port=port))


def check_free(listen: str, *, secure: bool = False) -> None:
    """Check that nobody listens at an address; a socket that was left behind is removed.

    Raises:
        ConfigurationError: it is not local (but for TLS), in use, or cannot be bound.
    """
    _check_free(Address.parse(listen, secure=secure))


def _check_free(address: Address) -> None:
    if address.path:
        _free_socket(Path(address.path))
    elif address.port:
        _probe(address)


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _probe(address: Address) -> None:
    """Bind the port for a moment: gRPC's own message does not say why it failed."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {address}: {error.strerror}", hint="another program has it: choose another port"
            ) from error


def _free_socket(path: Path) -> None:
    """Remove a socket that nobody listens on any more."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigurationError(f"cannot listen on {path}: it is there and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            raise ConfigurationError(f"cannot listen on {path}: {error.strerror}") from error
    raise ConfigurationError(f"cannot listen on {path}: it is in use", hint="another daemon listens there")
