"""The one chain around every RPC of a server: identity, role, deadline, request id, metrics, error translation.

A handler raises DimError and nothing else on purpose; what else it raises is a fault, which the client sees
as INTERNAL with the request's id and the log with its traceback.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import grpc

from dim_pipelines.errors import DimError
from dim_pipelines.telemetry.logging import REQUEST_ID
from dim_pipelines.telemetry.metrics import RpcMetrics
from dim_pipelines.wire.access import Guard
from dim_pipelines.wire.callers import Gate, peer_of
from dim_pipelines.wire.status import REQUEST_KEY, to_status

__all__ = ["UNARY_SECONDS", "ServerChain", "peer_of"]

log = logging.getLogger(__name__)

UNARY_SECONDS: Final = 60.0
"""How long a unary RPC may take whose caller set no deadline."""

if TYPE_CHECKING:
    _Interceptor = grpc.aio.ServerInterceptor[Any, Any]
else:  # generic only in the stubs
    _Interceptor = grpc.aio.ServerInterceptor

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Any
"""`grpc.RpcMethodHandler`; its stubs do not know the aio form."""


class ServerChain(_Interceptor):
    """Wraps every handler of a server."""

    def __init__(
        self,
        metrics: RpcMetrics,
        unbounded: frozenset[str] = frozenset(),
        guard: Guard | None = None,
        *,
        door: bool = False,
    ) -> None:
        """Make the chain.

        Args:
            metrics: where to count.
            unbounded: full names (`/package.Service/Method`) of unary methods without a default deadline.
            guard: decides about callers with TLS; None where the server has no TLS.
            door: whether callers with TLS show no certificate and get only the methods for anybody.
        """
        self._metrics = metrics
        self._gate = Gate(metrics, guard, door=door)
        self._unbounded = unbounded

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Handler]], handler_call_details: Any
    ) -> Handler:
        """Give the wrapped handler; None for an unknown method, which gRPC answers itself."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        given = dict(handler_call_details.invocation_metadata or ()).get(REQUEST_KEY, "")
        request_id = str(given)[:64] or uuid.uuid4().hex
        codecs = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(self._streaming(inner, method, request_id), **codecs)
        inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make(self._single(inner, method, request_id, handler.request_streaming), **codecs)

    def _single(self, inner: Any, method: str, request_id: str, streams: bool) -> Any:
        async def call(request: Any, context: Context) -> Any:
            async with self._around(method, request_id, context):
                peer = self._gate.admit(context, method)
                limit = None
                if context.time_remaining() is None and method not in self._unbounded:
                    limit = UNARY_SECONDS
                # A unary RPC is over soon: it is not worth a watch of its own.
                with self._gate.watch(peer if streams else None, method):
                    async with asyncio.timeout(limit):
                        return await inner(request, context)

        return call

    def _streaming(self, inner: Any, method: str, request_id: str) -> Any:
        generates = inspect.isasyncgenfunction(inner)

        # Never itself a generator: gRPC's task would wait outside of it for a slow reader, and a cut would not be seen.
        async def write(request: Any, context: Context) -> None:
            async with self._around(method, request_id, context):
                with self._gate.watch(self._gate.admit(context, method), method):
                    if not generates:
                        await inner(request, context)
                        return
                    async with aclosing(inner(request, context)) as answers:
                        async for answer in answers:
                            await context.write(answer)

        return write

    @asynccontextmanager
    async def _around(self, method: str, request_id: str, context: Context) -> AsyncIterator[None]:
        service, _, name = method.removeprefix("/").rpartition("/")
        REQUEST_ID.set(request_id)  # the handler's task is this RPC's own
        begun = time.perf_counter()
        code = grpc.StatusCode.OK
        self._metrics.open.labels(service, name).inc()
        try:
            yield
        except DimError as error:
            code, message, metadata = to_status(error)
            await context.abort(code, message, (*metadata, (REQUEST_KEY, request_id)))
        except TimeoutError:
            code = grpc.StatusCode.DEADLINE_EXCEEDED
            await context.abort(code, f"{name} took too long", ((REQUEST_KEY, request_id),))
        except grpc.aio.AbortError:
            code = grpc.StatusCode.ABORTED
            raise
        except (asyncio.CancelledError, GeneratorExit):
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception:
            code = grpc.StatusCode.INTERNAL
            log.exception("%s failed", method)
            await context.abort(code, f"internal error, request {request_id}", ((REQUEST_KEY, request_id),))
        finally:
            self._metrics.open.labels(service, name).dec()
            self._metrics.requests.labels(service, name, code.name).inc()
            self._metrics.seconds.labels(service, name).observe(time.perf_counter() - begun)
