"""Domain values to and from the messages of `dim.v1`; nothing else in DIM touches a message's fields.

Reading checks what a stranger wrote: a field that no honest peer sends is `ProtocolError`.
"""

from __future__ import annotations

from dim_pipelines.domain.advertisement import Speed
from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.events import RowError, Task, TaskDone, TaskFailed, Usage
from dim_pipelines.domain.node import Device, NodeDescription
from dim_pipelines.errors import InputError, ProtocolError
from dim_pipelines.wire.v1 import node_pb2


def cid_from_wire(raw: bytes) -> Cid:
    """Read the 36 bytes of a CID.

    Raises:
        ProtocolError: they are none.
    """
    try:
        return Cid(raw)
    except InputError as error:
        raise ProtocolError(error.message) from error


def task_to_wire(task: Task) -> node_pb2.Task:
    """Write a task."""
    return node_pb2.Task(
        shard=task.shard,
        step=task.step,
        inputs=task.inputs,
        input_rows=task.input_rows,
        attempt=task.attempt,
        deadline_ms=task.deadline_ms,
    )


def task_from_wire(message: node_pb2.Task) -> Task:
    """Read a task.

    Raises:
        ProtocolError: an input is no CID, or there is none.
    """
    if not message.inputs:
        raise ProtocolError(f"a task of shard {message.shard} has no input")
    inputs = tuple([cid_from_wire(raw) for raw in message.inputs])
    return Task(message.shard, message.step, inputs, message.input_rows, message.attempt, message.deadline_ms)


def usage_to_wire(usage: Usage) -> node_pb2.Usage:
    """Write a usage."""
    return node_pb2.Usage(
        rows=usage.rows,
        bytes_in=usage.bytes_in,
        bytes_out=usage.bytes_out,
        compute_ms=usage.compute_ms,
        peak_bytes=usage.peak_bytes,
    )


def usage_from_wire(message: node_pb2.Usage) -> Usage:
    """Read a usage."""
    return Usage(message.rows, message.bytes_in, message.bytes_out, message.compute_ms, message.peak_bytes)


def outcome_to_wire(outcome: TaskDone | TaskFailed) -> node_pb2.Outcome:
    """Write an outcome."""
    if isinstance(outcome, TaskDone):
        return node_pb2.Outcome(
            shard=outcome.shard,
            step=outcome.step,
            attempt=outcome.attempt,
            output=outcome.output,
            rows=outcome.rows,
            row_errors=[node_pb2.RowError(row=item.row, reason=item.reason) for item in outcome.row_errors],
            usage=usage_to_wire(outcome.usage),
        )
    return node_pb2.Outcome(
        shard=outcome.shard,
        step=outcome.step,
        attempt=outcome.attempt,
        failure=node_pb2.TaskFailure(
            code=outcome.code,
            message=outcome.message,
            retryable=outcome.retryable,
            handed_back=outcome.handed_back,
        ),
    )


def outcome_from_wire(message: node_pb2.Outcome) -> TaskDone | TaskFailed:
    """Read an outcome.

    Raises:
        ProtocolError: it holds neither an output nor a failure, or the output is no CID.
    """
    which = message.WhichOneof("result")
    if which == "output":
        return TaskDone(
            message.shard,
            message.step,
            message.attempt,
            cid_from_wire(message.output),
            message.rows,
            usage_from_wire(message.usage),
            tuple([RowError(item.row, item.reason) for item in message.row_errors]) if message.row_errors else (),
        )
    if which == "failure":
        failure = message.failure
        return TaskFailed(
            message.shard,
            message.step,
            message.attempt,
            failure.code,
            failure.message,
            failure.retryable,
            failure.handed_back,
        )
    raise ProtocolError(f"an outcome of shard {message.shard} says neither done nor failed")


def description_to_wire(description: NodeDescription) -> node_pb2.NodeDescription:
    """Write what a node says of itself."""
    return node_pb2.NodeDescription(
        name=description.name,
        key=description.key,
        version=description.version,
        devices=[
            node_pb2.Device(id=item.id, kind=item.kind, name=item.name, memory_bytes=item.memory_bytes)
            for item in description.devices
        ],
        numerics=description.numerics,
        swarm=description.swarm,
        max_input_bytes=description.max_input_bytes,
        draining=description.draining,
        id=description.id,
        owner=description.owner,
        labels=description.labels,
        models=sorted(description.models),
        speeds=[speed_to_wire(each) for each in description.speeds],
        price=description.price,
        max_sessions=description.max_sessions,
        paused=description.paused,
        owners=description.owners,
        licences=description.licences,
    )


def description_from_wire(message: node_pb2.NodeDescription) -> NodeDescription:
    """Read what a node says of itself.

    Raises:
        ProtocolError: a model is no CID.
    """
    return NodeDescription(
        name=message.name,
        key=message.key,
        version=message.version,
        devices=tuple(Device(item.id, item.kind, item.name, item.memory_bytes) for item in message.devices),
        numerics=dict(message.numerics),
        swarm=message.swarm,
        max_input_bytes=message.max_input_bytes,
        draining=message.draining,
        id=message.id,
        owner=message.owner or "local",
        labels=dict(message.labels),
        models=frozenset(cid_from_wire(raw) for raw in message.models),
        speeds=tuple(speed_from_wire(each) for each in message.speeds),
        price=message.price,
        max_sessions=message.max_sessions,
        paused=message.paused,
        owners=tuple(message.owners),
        licences=tuple(message.licences),
    )


def speed_to_wire(speed: Speed) -> node_pb2.Speed:
    """Write a measured speed."""
    return node_pb2.Speed(
        model=speed.model,
        numerics=speed.numerics,
        rows_per_1000_s=speed.rows_per_1000_s,
        spread_per_mille=speed.spread_per_mille,
        samples=speed.samples,
    )


def speed_from_wire(message: node_pb2.Speed) -> Speed:
    """Read a measured speed.

    Raises:
        ProtocolError: its model is no CID.
    """
    return Speed(
        model=cid_from_wire(message.model),
        numerics=message.numerics,
        rows_per_1000_s=message.rows_per_1000_s,
        spread_per_mille=message.spread_per_mille,
        samples=message.samples,
    )
