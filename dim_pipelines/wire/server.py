"""Starting a gRPC server as all of DIM's are: one address, health, reflection, sizes by policy, the one chain."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from dim_pipelines.errors import ConfigurationError
from dim_pipelines.telemetry.metrics import RpcMetrics
from dim_pipelines.wire.channel import SERVER_OPTIONS, Address
from dim_pipelines.wire.interceptors import ServerChain

Register = Callable[[grpc.aio.Server], Sequence[str]]
"""Adds services to a server and gives their full names."""


class RpcServer:
    """A started server."""

    def __init__(self, server: grpc.aio.Server, address: str, services: Sequence[str]) -> None:
        """Use `start`."""
        self._server = server
        self._services = ("", *services)
        self.address = address
        self.health = HealthServicer()

    @classmethod
    async def start(
        cls, listen: str, register: Register, metrics: RpcMetrics, *, unbounded: frozenset[str] = frozenset()
    ) -> RpcServer:
        """Bind, add the services and serve.

        Args:
            listen: `unix:PATH`, or `HOST:PORT` on loopback; port 0 takes a free one.
            register: adds the services.
            metrics: where RPCs are counted.
            unbounded: unary methods without a default deadline.

        Raises:
            ConfigurationError: the address is not local, is in use, or cannot be bound.
        """
        address = Address.parse(listen)
        server = grpc.aio.server(interceptors=[ServerChain(metrics, unbounded)], options=list(SERVER_OPTIONS))
        names = list(register(server))
        made = cls(server, "", names)
        health_pb2_grpc.add_HealthServicer_to_server(made.health, server)
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
        check_free(listen)
        # The socket is born with the umask's mode: nobody may connect before it could be narrowed.
        before = os.umask(0o177) if address.path else None
        try:
            port = server.add_insecure_port(str(address))
        except RuntimeError as error:
            raise ConfigurationError(f"cannot listen on {address}", hint="choose another address") from error
        finally:
            if before is not None:
                os.umask(before)
        made.address = str(address) if address.path else str(Address(host=address.host, port=port))
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


def check_free(listen: str) -> None:
    """Check that nobody listens at an address; a socket that was left behind is removed.

    Raises:
        ConfigurationError: it is not local, in use, or cannot be bound.
    """
    address = Address.parse(listen)
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
