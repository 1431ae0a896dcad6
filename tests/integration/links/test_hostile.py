"""What members may do to a relay, and a relay to its members, and that nothing else is disturbed by it."""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import grpc
import pytest

from dim_pipelines.domain.roster import Limits
from dim_pipelines.errors import DimError, NodeUnreachable, ProtocolError
from dim_pipelines.node import attachment as attachments
from dim_pipelines.orchestrator import link as links
from dim_pipelines.orchestrator.link import LinkServicer
from dim_pipelines.wire.chunk import CLOSED, data_chunk
from dim_pipelines.wire.pump import CONNECT, DIAL
from dim_pipelines.wire.status import from_rpc_error
from dim_pipelines.wire.v1 import link_pb2, link_pb2_grpc

ECHO = "/test.Echo/Echo"


async def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Wait for what nobody announces."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - it watches what sets no event
            await asyncio.sleep(0.01)


async def echo(channel: grpc.aio.Channel, message: bytes) -> bytes:
    call: Any = channel.stream_stream(ECHO)(None, timeout=60)
    await call.write(message)
    answer = await call.read()
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    return bytes(answer)


def raw(channel: grpc.aio.Channel, method: str) -> Any:
    return channel.stream_stream(method, request_serializer=None, response_deserializer=None)(None)


async def refusal(call: Any, messages: Iterable[Any]) -> DimError:
    """Send messages and give the error that ends the stream."""
    try:
        for message in messages:
            await call.write(message)
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    except asyncio.InvalidStateError:  # it ended while we wrote
        ended = await call.code()
        assert ended is not grpc.StatusCode.OK
        return from_rpc_error(
            grpc.aio.AioRpcError(
                ended, await call.initial_metadata(), await call.trailing_metadata(), await call.details()
            )
        )
    raise AssertionError("the stream ended well")


def attach(channel: grpc.aio.Channel) -> Any:
    return link_pb2_grpc.LinkServiceStub(channel).Attach(None)  # type: ignore[arg-type]


def hello(name: str) -> link_pb2.AttachMessage:
    return link_pb2.AttachMessage(hello=link_pb2.Hello(name=name, boot=b"boot"))


def chunk(**fields: Any) -> bytes:
    return link_pb2.Chunk(**fields).SerializeToString()


class Misleading(LinkServicer):
    """An orchestrator that splices every caller to one node, whomever they ask for."""

    victim = ""

    async def Connect(self, requests: Any, context: Any) -> None:
        class Changed:
            def __getattr__(self, name: str) -> Any:
                return getattr(context, name)

            first = True

            async def read(self) -> Any:
                message = await context.read()
                if self.first and isinstance(message, bytes):
                    self.first, message = False, chunk(node=Misleading.victim)
                return message

        await super().Connect(requests, Changed())  # type: ignore[arg-type]


async def test_a_splice_to_the_wrong_peer_fails_in_the_handshake_inside(stage: Any) -> None:
    orchestrator = await stage.orchestrator(kind=Misleading)
    wanted, wrong = await stage.attached(await stage.node()), await stage.attached(await stage.node())
    caller = stage.member("run_host")
    Misleading.victim = wrong.name
    tunnel = await stage.tunnel(orchestrator, wanted.name, caller)
    call: Any = stage.channel(tunnel, wanted.pin, caller).stream_stream(ECHO)(None, wait_for_ready=False)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.write(b"a row of somebody's table")
        await call.read()
    assert isinstance(from_rpc_error(caught.value), NodeUnreachable)
    assert "CERTIFICATE_VERIFY_FAILED" in str(caught.value.debug_error_string())
    assert tunnel.moved.sent > 0 and not wrong.calls and not wanted.calls
    Misleading.victim = wanted.name  # an honest orchestrator, and all is well
    assert await echo(stage.channel(tunnel, wanted.pin, caller), b"x") == b"x"
    assert wanted.calls and not wrong.calls


async def test_a_caller_without_rights_at_the_node_is_refused_by_the_node(stage: Any) -> None:
    """The relay lets it through, because it may not look; the node's own TLS does not."""
    orchestrator = await stage.orchestrator()
    node = await stage.attached(await stage.node())
    caller = stage.member("run_host")
    tunnel = await stage.tunnel(orchestrator, node.name, caller)
    call: Any = stage.channel(tunnel, node.pin, caller).stream_stream("/test.Echo/Secret")(None)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED and not node.calls


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("method", "openings"), [(DIAL, 10_000), (CONNECT, 1_000)])
async def test_a_flood_of_streams_of_one_member_is_refused_and_others_go_on(
    stage: Any, method: str, openings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachments, "SILENT_S", 3600.0)  # one loop runs all of this: it may be late, and that is all
    orchestrator = await stage.orchestrator(clock=lambda: 0.0)  # in one moment, however long the machine takes
    node = await stage.attached(await stage.node())
    caller = stage.member("run_host")
    good = stage.channel(await stage.tunnel(orchestrator, node.name, caller), node.pin, caller)
    assert await echo(good, b"before") == b"before"
    channel = stage.link(orchestrator, stage.member("node" if method == DIAL else "run_host"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(links, "FIRST_S", 1.0)
    answered = 0
    flood = asyncio.gather(*(raw(channel, method).code() for _ in range(openings)))  # they say nothing at all
    while not flood.done():
        assert await echo(good, bytes(1 << 16)) == bytes(1 << 16)
        answered += 1
    codes = Counter(code.name for code in await flood)
    assert codes.total() == openings and "OK" not in codes
    name = method.rpartition("/")[2]
    counts = {
        code: orchestrator.registry.get_sample_value("dim_link_streams_ended_total", {"method": name, "code": code})
        for code in ("quota_exceeded", "node_unreachable")
    }
    # gRPC itself refuses (with UNAVAILABLE) what comes beyond 1,024 streams of a connection: these are not counted here
    assert counts["quota_exceeded"] >= codes["RESOURCE_EXHAUSTED"] > 0
    assert 0 < counts["node_unreachable"] <= 256  # let in, and said nothing
    assert answered > 1
    assert node.attachment.attached_to == orchestrator.name and not orchestrator.detached
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB; both sides of 10,000 calls


async def test_streams_that_never_say_what_they_are_for_are_few_and_end(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    orchestrator = await stage.orchestrator()
    mad = stage.member("node")
    stage.limits[mad.name] = Limits(max_streams=5)
    channel = stage.link(orchestrator, mad)
    monkeypatch.setattr(links, "FIRST_S", 3600.0)
    held = [raw(channel, DIAL) for _ in range(5)]
    opened = {"service": "dim.v1.LinkService", "method": "Dial"}
    await until(lambda: orchestrator.registry.get_sample_value("dim_rpc_open", opened) == 5)
    for _ in range(50):
        assert (await refusal(raw(channel, DIAL), [])).message == "5 streams are open, the limit is 5"
    for call in held:
        call.cancel()
    await until(lambda: orchestrator.registry.get_sample_value("dim_rpc_open", opened) == 0)
    monkeypatch.setattr(links, "FIRST_S", 0.1)
    error = await refusal(raw(channel, DIAL), [])
    assert isinstance(error, NodeUnreachable) and "the stream said nothing" in error.message


@pytest.mark.parametrize(
    ("method", "role", "first"),
    [
        (DIAL, "node", b""),
        (DIAL, "node", b"\xff\xff"),
        (DIAL, "node", chunk(session=b"short")),
        (DIAL, "node", chunk(node="k51")),
        (DIAL, "node", data_chunk(b"x")),
        (DIAL, "node", chunk(session=bytes(1 << 20))),
        (CONNECT, "run_host", b"\xff\xff"),
        (CONNECT, "run_host", chunk(session=bytes(16))),
        (CONNECT, "run_host", CLOSED),
        (CONNECT, "run_host", chunk(node="k" * 1000)),
    ],
)
async def test_a_stream_that_begins_with_nonsense_is_refused(stage: Any, method: str, role: str, first: bytes) -> None:
    orchestrator = await stage.orchestrator()
    call = raw(stage.link(orchestrator, stage.member(role)), method)
    assert isinstance(await refusal(call, [first]), ProtocolError)


async def test_each_method_is_for_its_role(stage: Any) -> None:
    orchestrator = await stage.orchestrator()
    as_node, as_run_host = (stage.link(orchestrator, stage.member(role)) for role in ("node", "run_host"))
    for call in (raw(as_node, CONNECT), raw(as_run_host, DIAL), attach(as_run_host)):
        assert (await refusal(call, [])).code == "forbidden"


async def test_nobody_attaches_under_another_name(stage: Any) -> None:
    orchestrator = await stage.orchestrator()
    node, thief = await stage.attached(await stage.node()), stage.member("node")
    error = await refusal(attach(stage.link(orchestrator, thief)), [hello(node.name)])
    assert isinstance(error, ProtocolError) and "own name" in error.message
    assert orchestrator.attached == [node.name] and not orchestrator.detached


async def test_nobody_dials_in_for_another_node(stage: Any) -> None:
    """A node that has learnt a session's id cannot take the caller that waits under it."""
    orchestrator = await stage.orchestrator()
    slow, thief = stage.member("node"), stage.member("node")
    attached = attach(stage.link(orchestrator, slow))
    await attached.write(hello(slow.name))
    assert (await attached.read()).attached.max_sessions == 16
    call = raw(stage.link(orchestrator, stage.member("run_host")), CONNECT)
    await call.write(chunk(node=slow.name))
    event = await attached.read()
    while event.WhichOneof("event") != "dial_back":
        event = await attached.read()
    session = chunk(session=event.dial_back.session)
    assert (await refusal(raw(stage.link(orchestrator, thief), DIAL), [session])).code == "forbidden"
    right = raw(stage.link(orchestrator, slow), DIAL)
    await right.write(session)
    await right.write(data_chunk(b"it is me"))
    assert await call.read() == data_chunk(b"it is me")
    again = await refusal(raw(stage.link(orchestrator, slow), DIAL), [session])
    assert again.code == "forbidden"  # a session is dialled once
    for each in (call, right, attached):
        each.cancel()


async def test_a_flood_of_pulses_ends_the_attachment(stage: Any) -> None:
    orchestrator = await stage.orchestrator()
    good, mad = await stage.attached(await stage.node()), stage.member("node")
    pulse = link_pb2.AttachMessage(pulse=link_pb2.Pulse())
    await refusal(attach(stage.link(orchestrator, mad)), [hello(mad.name), *[pulse] * 1000])
    await until(lambda: orchestrator.detached == [mad.name])
    assert orchestrator.servicer.attached == {good.name}
    ended = {"method": "Attach", "code": "protocol"}
    assert orchestrator.registry.get_sample_value("dim_link_streams_ended_total", ended) == 1


async def test_a_second_hello_ends_the_attachment(stage: Any) -> None:
    orchestrator = await stage.orchestrator()
    mad = stage.member("node")
    error = await refusal(attach(stage.link(orchestrator, mad)), [hello(mad.name)] * 2)
    assert isinstance(error, ProtocolError) and "nothing but pulses" in error.message
    await until(lambda: orchestrator.detached == [mad.name])


async def test_a_node_that_says_nothing_is_attached_no_more(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "PULSE_S", 0.05)
    now = [0.0]
    orchestrator = await stage.orchestrator(clock=lambda: now[0])
    mute = stage.member("node")
    call = attach(stage.link(orchestrator, mute))
    await call.write(hello(mute.name))
    await until(lambda: orchestrator.attached == [mute.name])
    now[0] = 6.0
    for _ in range(3):
        assert await call.read() is not grpc.aio.EOF
    assert not orchestrator.detached
    now[0] = 6.1
    error = await refusal(call, [])
    assert isinstance(error, NodeUnreachable) and "silent for 6 s" in error.message
    assert orchestrator.detached == [mute.name]


async def test_an_attachment_that_is_made_anew_takes_the_place_of_the_old(stage: Any) -> None:
    orchestrator = await stage.orchestrator()
    member = stage.member("node")
    first, second = attach(stage.link(orchestrator, member)), attach(stage.link(orchestrator, member))
    await first.write(hello(member.name))
    assert (await first.read()).WhichOneof("event") == "attached"
    await second.write(hello(member.name))
    assert (await second.read()).WhichOneof("event") == "attached"
    error = await refusal(first, [])
    assert "attached anew" in error.message
    assert orchestrator.servicer.attached == {member.name} and not orchestrator.detached
    second.cancel()
    await until(lambda: orchestrator.detached == [member.name])


@pytest.mark.parametrize("junk", [b"", b"\x1a\x00", b"\xff" * 10, chunk(node="k51"), data_chunk(b"x") * 2])
async def test_a_tunnel_in_which_one_side_sends_nonsense_is_ended(stage: Any, junk: bytes) -> None:
    orchestrator = await stage.orchestrator()
    node = await stage.attached(await stage.node())
    call = raw(stage.link(orchestrator, stage.member("run_host")), CONNECT)
    assert isinstance(await refusal(call, [chunk(node=node.name), junk]), ProtocolError)
    await until(lambda: not node.attachment.state.tunnels)
    assert node.attachment.attached_to == orchestrator.name


class Babbling(LinkServicer):
    """An orchestrator that answers a caller with nonsense of its own."""

    async def Connect(self, requests: Any, context: Any) -> None:
        await context.read()
        await context.write(b"\x1a\x7fnonsense")
        await context.read()


async def test_an_orchestrator_that_sends_nonsense_breaks_the_tunnel_and_nothing_else(stage: Any) -> None:
    orchestrator = await stage.orchestrator(kind=Babbling)
    node = await stage.attached(await stage.node())
    tunnel = await stage.tunnel(orchestrator, node.name, stage.member("run_host"))
    reader, writer = await asyncio.open_unix_connection(tunnel.address.removeprefix("unix:"))
    assert await asyncio.wait_for(reader.read(), 60) == b""
    writer.close()
    assert isinstance(tunnel.error, ProtocolError) and "not a chunk of a tunnel" in tunnel.error.message


class Pestering(LinkServicer):
    """An orchestrator that makes nodes dial back for nobody."""

    async def Attach(self, requests: Any, context: Any) -> None:
        await context.read()
        await context.write(link_pb2.AttachEvent(attached=link_pb2.Attached(max_sessions=1_000_000)))
        for _ in range(1000):
            await context.write(link_pb2.AttachEvent(dial_back=link_pb2.DialBack(session=bytes(16))))
        await asyncio.Event().wait()

    async def Dial(self, requests: Any, context: Any) -> None:
        await context.read()
        await asyncio.Event().wait()


async def test_a_node_dials_back_as_often_as_it_wants_and_no_more(stage: Any) -> None:
    orchestrator = await stage.orchestrator(kind=Pestering)
    node = await stage.node(max_tunnels=3)
    await until(lambda: node.attachment.state.tunnels == 3)
    for _ in range(50):
        await asyncio.sleep(0.01)
        assert node.attachment.state.tunnels == 3
    assert node.attachment.attached_to == orchestrator.name
