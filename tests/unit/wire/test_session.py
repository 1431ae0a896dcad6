"""The work session: a stateful property (nothing lost, doubled or stuck) and every rule by itself."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.domain.events import RowError, Task, TaskDone, TaskFailed, Usage
from dim_pipelines.errors import ProtocolError
from dim_pipelines.wire import codec
from dim_pipelines.wire.session import (
    CancelRequested,
    CreditGranted,
    DispatcherSession,
    NodeSession,
    OpenRequested,
    PeerAlive,
    SessionOpened,
    SessionRefused,
    State,
    TaskProgress,
    TasksAnswered,
    TasksReceived,
)
from dim_pipelines.wire.v1 import node_pb2

CID = Cid.of(RAW, b"content")
NOW = 100.0


def done(shard: int, attempt: int = 1) -> TaskDone:
    return TaskDone(shard, 0, attempt, CID, 3, Usage(3, 10, 20, 4, 5), (RowError(1, "bad"),))


def failed(shard: int, attempt: int = 1) -> TaskFailed:
    return TaskFailed(shard, 0, attempt, "engine_failed", "it broke", True, True)


def task(shard: int, attempt: int = 1) -> Task:
    return Task(shard, 0, (CID,), 3, attempt)


def opened_pair(credit: int = 0) -> tuple[DispatcherSession, NodeSession]:
    dispatcher, node = DispatcherSession(NOW), NodeSession(NOW)
    assert node.receive(dispatcher.open(b"grant", CID), NOW) == [OpenRequested(1, b"grant", CID)]
    assert dispatcher.receive(node.opened("n", "c"), NOW) == [SessionOpened(1, "n", "c")]
    if credit:
        assert dispatcher.receive(node.grant_credit(credit), NOW) == [CreditGranted(credit)]
    return dispatcher, node


class Wired(RuleBasedStateMachine):
    """A dispatcher and a node over two queues that deliver whenever they like."""

    def __init__(self) -> None:
        super().__init__()
        self.dispatcher, self.node = DispatcherSession(0.0), NodeSession(0.0)
        self.to_node: deque[node_pb2.DispatcherMessage] = deque()
        self.to_dispatcher: deque[node_pb2.NodeMessage] = deque()
        self.next_shard = 0
        self.sent: set[int] = set()
        self.received: list[int] = []
        self.answered: list[int] = []
        self.at_node: list[Task] = []

    @initialize()
    def start(self) -> None:
        self.to_node.append(self.dispatcher.open(b"g", CID))

    @precondition(lambda self: self.to_node)
    @rule()
    def deliver_to_node(self) -> None:
        for event in self.node.receive(self.to_node.popleft(), 1.0):
            match event:
                case OpenRequested():
                    self.to_dispatcher.append(self.node.opened("n", "c"))
                case TasksReceived(tasks):
                    self.at_node.extend(tasks)
                    self.received.extend(item.shard for item in tasks)
                case CancelRequested(keys):
                    cancelled = [item for item in self.at_node if (item.shard, item.step, item.attempt) in keys]
                    assert len(cancelled) == len(keys)
                    if cancelled:
                        self.at_node = [item for item in self.at_node if item not in cancelled]
                        self.to_dispatcher.append(self.node.outcomes([failed(item.shard) for item in cancelled]))

    @precondition(lambda self: self.to_dispatcher)
    @rule()
    def deliver_to_dispatcher(self) -> None:
        for event in self.dispatcher.receive(self.to_dispatcher.popleft(), 1.0):
            if isinstance(event, TasksAnswered):
                self.answered.extend(item.shard for item in event.outcomes)

    @precondition(lambda self: self.node.state is State.OPEN)
    @rule(n=st.integers(1, 40))
    def grant(self, n: int) -> None:
        self.to_dispatcher.append(self.node.grant_credit(n))

    @precondition(lambda self: self.dispatcher.state is State.OPEN and self.dispatcher.credit)
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, self.dispatcher.credit))
        tasks = [task(self.next_shard + offset) for offset in range(count)]
        self.next_shard += count
        self.sent.update(item.shard for item in tasks)
        self.to_node.append(self.dispatcher.send_tasks(tasks))

    @precondition(lambda self: self.at_node)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(self.at_node), min_size=1, unique_by=lambda item: item.shard))
        self.at_node = [item for item in self.at_node if item not in chosen]
        self.to_dispatcher.append(self.node.outcomes([done(item.shard) for item in chosen]))

    @precondition(lambda self: self.dispatcher.state is State.OPEN)
    @rule(shards=st.lists(st.integers(0, 20), max_size=3))
    def cancel(self, shards: list[int]) -> None:
        self.to_node.append(self.dispatcher.cancel(shards))

    @precondition(lambda self: self.dispatcher.state is State.OPEN and self.node.state is State.OPEN)
    @rule()
    def keep_alive(self) -> None:
        self.to_node.append(self.dispatcher.keep_alive())
        self.to_dispatcher.append(self.node.keep_alive())

    @invariant()
    def nothing_doubled(self) -> None:
        assert len(self.answered) == len(set(self.answered))
        assert len(self.received) == len(set(self.received))
        assert set(self.answered) <= self.sent
        assert {item.shard for item in self.dispatcher.open_tasks} == self.sent - set(self.answered)

    def teardown(self) -> None:
        """Whatever happened: deliver and answer what is left, and all sent tasks are answered."""
        while self.to_node or self.to_dispatcher or self.at_node:
            if self.to_node:
                self.deliver_to_node()
            elif self.to_dispatcher:
                self.deliver_to_dispatcher()
            else:
                item = self.at_node.pop()
                self.to_dispatcher.append(self.node.outcomes([done(item.shard)]))
        assert set(self.answered) == self.sent
        assert not self.dispatcher.open_tasks and not self.node.open_tasks
        assert self.dispatcher.credit == self.node.credit


TestWired = Wired.TestCase
TestWired.settings = settings(max_examples=60, stateful_step_count=40)


def test_outcomes_arrive_as_they_were_sent() -> None:
    dispatcher, node = opened_pair(2)
    node.receive(dispatcher.send_tasks([task(0), task(1)]), NOW)
    events = dispatcher.receive(node.outcomes([failed(1), done(0)]), NOW)
    assert events == [TasksAnswered((failed(1), done(0)))]
    assert dispatcher.receive(node.progress(0, 2), NOW) == [TaskProgress(0, 2)]


def test_silence_is_counted_from_the_last_message() -> None:
    dispatcher, node = opened_pair()
    assert dispatcher.silent_for(NOW + 3.5) == 3.5
    assert dispatcher.receive(node.keep_alive(), NOW + 3) == [PeerAlive()]
    assert node.receive(dispatcher.keep_alive(), NOW + 3) == [PeerAlive()]
    assert dispatcher.silent_for(NOW + 3.5) == 0.5
    assert node.silent_for(NOW + 2) == 0.0


def test_highest_common_version_or_none() -> None:
    node = NodeSession(NOW)
    message = node_pb2.DispatcherMessage(open=node_pb2.Open(versions=[7, 8], grant=b"", plan_cid=CID))
    assert node.receive(message, NOW) == [OpenRequested(None, b"", CID)]
    with pytest.raises(ProtocolError, match="common"):
        node.opened("n", "c")
    node = NodeSession(NOW)
    message.open.versions.append(1)
    assert node.receive(message, NOW) == [OpenRequested(1, b"", CID)]


def test_refusal_ends_both_sides_and_late_messages_are_ignored() -> None:
    dispatcher, node = opened_pair(1)
    late = dispatcher.send_tasks([task(0)])
    events = dispatcher.receive(node.refuse("node_refused", "no room", need=5, free=3), NOW)
    assert events == [SessionRefused("node_refused", "no room", 5, 3)]
    assert node.receive(late, NOW) == []
    assert dispatcher.close() == (task(0),)
    assert dispatcher.open_tasks == ()
    with pytest.raises(ProtocolError):
        node.refuse("node_refused", "twice")
    with pytest.raises(ProtocolError):
        dispatcher.keep_alive()


def test_closing_the_node_side_gives_its_open_tasks() -> None:
    dispatcher, node = opened_pair(1)
    node.receive(dispatcher.send_tasks([task(4, 2)]), NOW)
    assert node.close() == ((4, 0, 2),)
    with pytest.raises(ProtocolError, match="CLOSED"):
        node.receive(dispatcher.keep_alive(), NOW)
    with pytest.raises(ProtocolError):
        node.keep_alive()


@pytest.mark.parametrize(
    "misuse",
    [
        lambda d, n: d.open(b"", CID),
        lambda d, n: d.send_tasks([]),
        lambda d, n: d.send_tasks([task(0), task(1), task(2)]),
        lambda d, n: d.send_tasks([task(0), task(0)]),
        lambda d, n: n.opened("n", "c"),
        lambda d, n: n.grant_credit(0),
        lambda d, n: n.outcomes([]),
        lambda d, n: n.outcomes([done(9)]),
        lambda d, n: n.receive(node_pb2.DispatcherMessage(), NOW),
        lambda d, n: n.receive(node_pb2.DispatcherMessage(open=node_pb2.Open(versions=[1], plan_cid=CID)), NOW),
        lambda d, n: n.receive(node_pb2.DispatcherMessage(tasks=node_pb2.Tasks()), NOW),
        lambda d, n: n.receive(
            node_pb2.DispatcherMessage(tasks=node_pb2.Tasks(tasks=[codec.task_to_wire(task(0))] * 2)), NOW
        ),
        lambda d, n: n.receive(node_pb2.DispatcherMessage(tasks=node_pb2.Tasks(tasks=[node_pb2.Task()])), NOW),
        lambda d, n: d.receive(node_pb2.NodeMessage(), NOW),
        lambda d, n: d.receive(node_pb2.NodeMessage(credit=node_pb2.Credit(n=0)), NOW),
        lambda d, n: d.receive(node_pb2.NodeMessage(opened=node_pb2.Opened(version=1)), NOW),
        lambda d, n: d.receive(
            node_pb2.NodeMessage(outcomes=node_pb2.Outcomes(outcomes=[codec.outcome_to_wire(done(7))])), NOW
        ),
    ],
)
def test_what_the_protocol_forbids_closes_the_session(misuse: object) -> None:
    dispatcher, node = opened_pair(2)
    with pytest.raises(ProtocolError):
        misuse(dispatcher, node)  # type: ignore[operator]
    assert State.CLOSED in (dispatcher.state, node.state)


def test_nothing_comes_before_open() -> None:
    with pytest.raises(ProtocolError, match="before Open"):
        NodeSession(NOW).receive(node_pb2.DispatcherMessage(keep_alive=node_pb2.KeepAlive()), NOW)
    with pytest.raises(ProtocolError, match="not a CID"):
        NodeSession(NOW).receive(node_pb2.DispatcherMessage(open=node_pb2.Open(versions=[1], plan_cid=b"x")), NOW)
    with pytest.raises(ProtocolError, match="IDLE"):
        DispatcherSession(NOW).receive(node_pb2.NodeMessage(keep_alive=node_pb2.KeepAlive()), NOW)
    dispatcher = DispatcherSession(NOW)
    dispatcher.open(b"", CID)
    with pytest.raises(ProtocolError, match="version 9"):
        dispatcher.receive(node_pb2.NodeMessage(opened=node_pb2.Opened(version=9)), NOW)


@pytest.mark.parametrize(
    "bad", [node_pb2.Outcome(shard=1, attempt=1), node_pb2.Outcome(shard=1, attempt=1, output=b"no")]
)
def test_a_message_bad_in_its_middle_answers_nothing(bad: node_pb2.Outcome) -> None:
    dispatcher, _node = opened_pair(2)
    dispatcher.send_tasks([task(0), task(1)])
    message = node_pb2.NodeMessage(outcomes=node_pb2.Outcomes(outcomes=[codec.outcome_to_wire(done(0)), bad]))
    with pytest.raises(ProtocolError):
        dispatcher.receive(message, NOW)
    assert dispatcher.close() == (task(0), task(1))
