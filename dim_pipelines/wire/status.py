"""Errors across gRPC, by one table: DimError ↔ status code, with the exact error in the trailing metadata.

The status is for strangers and proxies; DIM's own peers read `dim-error-code`, so that a class of
`errors` arrives as itself. The hint travels percent-encoded, because metadata is ASCII.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, cast
from urllib.parse import quote, unquote

import grpc

from dim_pipelines import errors
from dim_pipelines.errors import DimError

CODE_KEY: Final = "dim-error-code"
HINT_KEY: Final = "dim-error-hint"
REQUEST_KEY: Final = "dim-request-id"
_MAX_MESSAGE: Final = 2000
_LOST_STATUS: Final = "Internal error from Core"
"""What grpc.aio says in place of the server's status where a write fails because the stream has just ended."""
_PRINTABLE: Final = " !\"#$&'()*+,-./:;<=>?@[]^_`{|}~"

_STATUS: Final[Mapping[type[DimError], grpc.StatusCode]] = {
    errors.ConfigurationError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.InputError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.AccessError: grpc.StatusCode.PERMISSION_DENIED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.ContentError: grpc.StatusCode.INTERNAL,
    errors.ContentNotFound: grpc.StatusCode.NOT_FOUND,
    errors.ContentMismatch: grpc.StatusCode.DATA_LOSS,
    errors.ContentUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DiscoveryError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NameUnresolved: grpc.StatusCode.UNAVAILABLE,
    errors.RolledBack: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NodeError: grpc.StatusCode.INTERNAL,
    errors.NodeUnreachable: grpc.StatusCode.UNAVAILABLE,
    errors.NodeBusy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.NodeRefused: grpc.StatusCode.FAILED_PRECONDITION,
    errors.EngineFailed: grpc.StatusCode.INTERNAL,
    errors.SchedulingError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.CoordinationError: grpc.StatusCode.ABORTED,
    errors.ProtocolError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    DimError: grpc.StatusCode.INTERNAL,
}
_MEANING: Final[Mapping[grpc.StatusCode, type[DimError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InputError,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.Forbidden,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.NodeBusy,
    grpc.StatusCode.NOT_FOUND: errors.ContentNotFound,
    grpc.StatusCode.DATA_LOSS: errors.ContentMismatch,
    grpc.StatusCode.UNAVAILABLE: errors.NodeUnreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.NodeUnreachable,
    grpc.StatusCode.UNIMPLEMENTED: errors.NodeRefused,
    grpc.StatusCode.FAILED_PRECONDITION: errors.NodeRefused,
    grpc.StatusCode.ABORTED: errors.CoordinationError,
    grpc.StatusCode.CANCELLED: errors.Cancelled,
}

_OTHER_SERVER: Final = (
    "the server shows another certificate than the expected one",
    "its new record brings the new one",
)
_HANDSHAKES: Final[Mapping[str, tuple[str, str]]] = {
    "CERTIFICATE_VERIFY_FAILED": _OTHER_SERVER,
    "Hostname Verification Check failed": _OTHER_SERVER,
    "is not in peer certificate": _OTHER_SERVER,
    "WRONG_VERSION_NUMBER": ("the server does not speak TLS", ""),
    "Socket closed": (
        "the server closed the connection",
        "it does so when it does not know the caller's certificate, or when that has ended: dim doctor",
    ),
}
"""Part of gRPC's message when it cannot connect → what it means, and the hint."""


def _classes(kind: type[DimError]) -> Iterator[type[DimError]]:
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from _classes(child)


BY_CODE: Final[Mapping[str, type[DimError]]] = {kind.code: kind for kind in _classes(DimError)}
"""Code string → class, for every class of `errors`."""


def to_status(error: DimError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]:
    """Give the status code, the message and the trailing metadata of an error.

    A class without a line in the table takes that of its nearest ancestor.
    """
    code = next(_STATUS[kind] for kind in inspect.getmro(type(error)) if kind in _STATUS)
    metadata = [(CODE_KEY, error.code)]
    if error.hint:
        metadata.append((HINT_KEY, quote(error.hint[:_MAX_MESSAGE], safe=_PRINTABLE)))
    return code, error.message[:_MAX_MESSAGE], tuple(metadata)


def from_rpc_error(error: grpc.aio.AioRpcError) -> DimError:
    """Give the DimError that a failed call stands for; the caller chains `error` as its cause."""
    pairs = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())  # the stubs know no pairs
    metadata = {key: value for key, value in pairs if isinstance(value, str)}
    message = error.details() or error.code().name
    kind = BY_CODE.get(metadata.get(CODE_KEY, ""))
    hint = unquote(metadata.get(HINT_KEY, ""))
    if kind is None:
        kind = _MEANING.get(error.code(), errors.NodeError)
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            message = "the node did not answer in time"
        elif message == _LOST_STATUS:
            kind, message = errors.NodeUnreachable, "the other side ended the stream"
        elif error.code() is grpc.StatusCode.UNAVAILABLE and message.startswith("failed to connect"):
            # A handshake that fails has no status of its own.
            message, hint = next((told for part, told in _HANDSHAKES.items() if part in message), (message, hint))
    return kind(message.splitlines()[0] if message else None, hint=hint or None)


def from_failure(code: str, message: str, hint: str | None = None) -> DimError:
    """Give the error that a code string of `Outcome` or `Refused` stands for."""
    return BY_CODE.get(code, errors.NodeError)(message or None, hint=hint)
