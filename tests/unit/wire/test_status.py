from __future__ import annotations

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines import errors
from dim_pipelines.errors import DimError
from dim_pipelines.wire.status import BY_CODE, from_failure, from_rpc_error, to_status


def sent(error: DimError) -> AioRpcError:
    code, message, metadata = to_status(error)
    for _, value in metadata:
        value.encode("ascii")
    return AioRpcError(code, Metadata(), Metadata(*metadata), message)


@given(st.sampled_from(sorted(BY_CODE)), st.text(min_size=1, max_size=40), st.text(max_size=40))
def test_every_error_arrives_as_itself(code: str, message: str, hint: str) -> None:
    error = BY_CODE[code](message, hint=hint)
    arrived = from_rpc_error(sent(error))
    assert type(arrived) is type(error) and arrived.hint == hint
    assert arrived.message == ((message.splitlines() or [""])[0] or BY_CODE[code]().message)


def test_every_class_of_errors_is_known_by_its_code() -> None:
    classes = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DimError)} - {
        DimError
    }
    assert set(BY_CODE.values()) == classes and len(BY_CODE) == len(classes)


def test_classes_of_other_modules_take_their_ancestors_status() -> None:
    class Odd(errors.NodeBusy):
        """Odd."""

    assert to_status(Odd())[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert type(from_rpc_error(sent(Odd("x")))) is errors.NodeBusy


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.NodeUnreachable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.NodeUnreachable),
        (grpc.StatusCode.UNIMPLEMENTED, errors.NodeRefused),
        (grpc.StatusCode.UNKNOWN, errors.NodeError),
    ],
)
def test_errors_of_strangers_have_a_meaning(code: grpc.StatusCode, kind: type[DimError]) -> None:
    assert type(from_rpc_error(AioRpcError(code, Metadata(), Metadata(), "why\nmore"))) is kind


def test_an_outcomes_code_gives_its_class() -> None:
    assert type(from_failure("engine_failed", "x")) is errors.EngineFailed
    assert type(from_failure("of a newer version", "x", "update")) is errors.NodeError
