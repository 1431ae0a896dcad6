"""The work stream as two state machines without I/O: one side is the dispatcher, the other the node.

The shells around them (`dispatch/node_client`, `node/service`) carry the messages; here is every rule::

    dispatcher                          node
    Open            ─────────────────►  OpenRequested            (nothing else may come first)
    SessionOpened   ◄─────────────────  opened(), or refuse()
    CreditGranted   ◄─────────────────  grant_credit(n)          (2 per device is the usual first grant)
    send_tasks()    ─────────────────►  TasksReceived            (never more than credit)
    TasksAnswered   ◄─────────────────  outcomes()               (each task exactly once, done or failed)
    cancel()        ─────────────────►  CancelRequested          (each cancelled task is answered all the same)
    keep_alive()    ◄────────────────►  keep_alive()             (every second; `silent_for` tells the rest)

A task is (shard, step, attempt). Sending one spends one credit for good; the node grants a new one when it
has room for another task. `receive` raises `ProtocolError` for what the peer must not send, and so do the
sending methods for what the caller must not; after that the session is CLOSED. Time is given in, in
seconds of any monotonic clock. Style of `h11` and `websockets`' sans-IO layer.
Both sides stand in one file, long as it is: each rule is read where its counterpart is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.events import Task, TaskDone, TaskFailed
from dim_pipelines.errors import ProtocolError
from dim_pipelines.wire import codec
from dim_pipelines.wire.v1 import node_pb2

VERSIONS: Final = (1,)
"""Protocol versions spoken here; the highest common one is used."""

TaskKey = tuple[int, int, int]
"""(shard, step, attempt)."""
Outcome = TaskDone | TaskFailed


class State(IntEnum):
    """Where a session stands; it only ever moves on."""

    IDLE = 0
    """Nothing was sent or received."""
    OPENING = 1
    """Open is on its way, or waits for the node's answer."""
    OPEN = 2
    """Tasks may travel."""
    CLOSED = 3
    """Refused, ended or broken; nothing more may be sent or received."""


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """Dispatcher: the node took the session; `numerics` is the class it will compute in."""

    version: int
    node: str
    numerics: str


@dataclass(frozen=True, slots=True)
class SessionRefused:
    """Dispatcher: the node will not take the session, or gives it up; its open tasks are void.

    Attributes:
        code: a code of `dim_pipelines.errors`.
        need, free: bytes of device memory where that was the reason, else 0.
    """

    code: str
    reason: str
    need: int
    free: int


@dataclass(frozen=True, slots=True)
class CreditGranted:
    """Dispatcher: `n` further tasks may be sent."""

    n: int


@dataclass(frozen=True, slots=True)
class TasksAnswered:
    """Dispatcher: outcomes of tasks that were open until now, in the node's order."""

    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class TaskProgress:
    """Dispatcher: rows computed so far of a task's shard."""

    shard: int
    rows: int


@dataclass(frozen=True, slots=True)
class OpenRequested:
    """Node: a dispatcher asks for a session; answer with `opened` or `refuse`.

    Attributes:
        version: the highest common protocol version; None where there is none: only `refuse` is allowed then.
        grant: the encoded SignedGrant, not yet checked.
        plan: CID of the plan block.
    """

    version: int | None
    grant: bytes
    plan: Cid


@dataclass(frozen=True, slots=True)
class TasksReceived:
    """Node: tasks to compute; each must be answered exactly once."""

    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Node: stop these tasks and answer each as failed with code `cancelled`.

    Attributes:
        keys: the open tasks that were meant.
        everything: the whole session was meant.
    """

    keys: tuple[TaskKey, ...]
    everything: bool


@dataclass(frozen=True, slots=True)
class PeerAlive:
    """Either: a keep-alive came."""


DispatcherEvent = SessionOpened | SessionRefused | CreditGranted | TasksAnswered | TaskProgress | PeerAlive
NodeEvent = OpenRequested | TasksReceived | CancelRequested | PeerAlive


class _Session:
    def __init__(self, now: float) -> None:
        self.state = State.IDLE
        self.credit = 0
        """Tasks that may still be sent (dispatcher) or received (node)."""
        self.version: int | None = None
        self._last_heard = now

    def silent_for(self, now: float) -> float:
        """Tell for how many seconds nothing has come from the other side."""
        return max(0.0, now - self._last_heard)

    def _broken(self, why: str) -> ProtocolError:
        self.state = State.CLOSED
        return ProtocolError(why)

    def _require(self, state: State, what: str) -> None:
        if self.state is not state:
            raise self._broken(f"{what} while the session is {self.state.name}")


class DispatcherSession(_Session):
    """The dispatcher's side of one (batch, node) stream."""

    def __init__(self, now: float) -> None:
        """Begin a session; `now` is where silence is counted from."""
        super().__init__(now)
        self._open_tasks: dict[TaskKey, Task] = {}

    @property
    def open_tasks(self) -> tuple[Task, ...]:
        """Tasks sent and not answered, oldest first."""
        return tuple(self._open_tasks.values())

    def open(self, grant: bytes, plan: Cid) -> node_pb2.DispatcherMessage:
        """Give the first message: the encoded SignedGrant and the CID of the plan.

        Raises:
            ProtocolError: the session was opened before.
        """
        self._require(State.IDLE, "Open")
        self.state = State.OPENING
        return node_pb2.DispatcherMessage(open=node_pb2.Open(versions=VERSIONS, grant=grant, plan_cid=plan))

    def send_tasks(self, tasks: Sequence[Task]) -> node_pb2.DispatcherMessage:
        """Give one message with these tasks; each spends one credit.

        Raises:
            ProtocolError: not open, none, more than credit, or a task was sent before and is still open.
        """
        self._require(State.OPEN, "Tasks")
        if not tasks or len(tasks) > self.credit:
            raise self._broken(f"{len(tasks)} tasks for a credit of {self.credit}")
        for task in tasks:
            key = (task.shard, task.step, task.attempt)
            if key in self._open_tasks:
                raise self._broken(f"task {key} is open already")
            self._open_tasks[key] = task
        self.credit -= len(tasks)
        return node_pb2.DispatcherMessage(tasks=node_pb2.Tasks(tasks=[codec.task_to_wire(task) for task in tasks]))

    def cancel(self, shards: Iterable[int] = ()) -> node_pb2.DispatcherMessage:
        """Give a message that cancels all tasks of these shards, or of the session when none are named.

        The node answers each of them; until then they stay open.

        Raises:
            ProtocolError: not open.
        """
        self._require(State.OPEN, "Cancel")
        return node_pb2.DispatcherMessage(cancel=node_pb2.Cancel(shards=shards))

    def keep_alive(self) -> node_pb2.DispatcherMessage:
        """Give a keep-alive.

        Raises:
            ProtocolError: the session was never opened, or is closed.
        """
        if self.state not in (State.OPENING, State.OPEN):
            raise self._broken(f"KeepAlive while the session is {self.state.name}")
        return node_pb2.DispatcherMessage(keep_alive=node_pb2.KeepAlive())

    def receive(self, message: node_pb2.NodeMessage, now: float) -> list[DispatcherEvent]:
        """Take in one message and tell what it means.

        Raises:
            ProtocolError: the node sent what it must not; the session is CLOSED, its tasks are in `open_tasks`.
        """
        self._last_heard = max(self._last_heard, now)
        which = message.WhichOneof("message")
        if self.state in (State.IDLE, State.CLOSED):
            raise self._broken(f"the node sent {which} while the session is {self.state.name}")
        if which == "keep_alive":
            return [PeerAlive()]
        if which == "refused":
            self.state = State.CLOSED
            refused = message.refused
            return [SessionRefused(refused.code, refused.reason, refused.need, refused.free)]
        if which == "opened":
            self._require(State.OPENING, "Opened")
            opened = message.opened
            if opened.version not in VERSIONS:
                raise self._broken(f"the node chose protocol version {opened.version}, offered were {VERSIONS}")
            self.state = State.OPEN
            self.version = opened.version
            return [SessionOpened(opened.version, opened.node, opened.numerics)]
        self._require(State.OPEN, f"{which} from the node")
        if which == "outcomes":
            return [TasksAnswered(self._answered(message.outcomes))]
        if which == "credit":
            if message.credit.n == 0:
                raise self._broken("the node granted no credit in a Credit message")
            self.credit += message.credit.n
            return [CreditGranted(message.credit.n)]
        if which == "progress":
            return [TaskProgress(message.progress.shard, message.progress.rows)]
        raise self._broken("the node sent an empty message, or one of a newer protocol")

    def close(self) -> tuple[Task, ...]:
        """End the session (the stream is gone) and give the tasks that were never answered."""
        self.state = State.CLOSED
        tasks = self.open_tasks
        self._open_tasks.clear()
        return tasks

    def _answered(self, message: node_pb2.Outcomes) -> tuple[Outcome, ...]:
        outcomes: dict[TaskKey, Outcome] = {}
        for item in message.outcomes:
            key = (item.shard, item.step, item.attempt)
            if key not in self._open_tasks or key in outcomes:
                raise self._broken(f"the node answered task {key}, which is not open")
            try:
                outcomes[key] = codec.outcome_from_wire(item)
            except ProtocolError:
                self.state = State.CLOSED
                raise
        for key in outcomes:  # only now: a message that is bad in its middle answers nothing
            del self._open_tasks[key]
        return tuple(outcomes.values())


class NodeSession(_Session):
    """The node's side of one (batch, node) stream."""

    def __init__(self, now: float) -> None:
        """Begin a session; `now` is where silence is counted from."""
        super().__init__(now)
        self._open_tasks: dict[TaskKey, None] = {}
        self._offered: int | None = None
        self._refused = False

    @property
    def open_tasks(self) -> tuple[TaskKey, ...]:
        """Tasks received and not answered, oldest first."""
        return tuple(self._open_tasks)

    def receive(self, message: node_pb2.DispatcherMessage, now: float) -> list[NodeEvent]:
        """Take in one message and tell what it means.

        Raises:
            ProtocolError: the dispatcher sent what it must not; the session is CLOSED.
        """
        self._last_heard = max(self._last_heard, now)
        which = message.WhichOneof("message")
        if self._refused:
            return []  # it was on its way before the dispatcher read the refusal
        if self.state is State.CLOSED:
            raise self._broken(f"the dispatcher sent {which} while the session is CLOSED")
        if which == "open":
            self._require(State.IDLE, "Open")
            common = set(message.open.versions) & set(VERSIONS)
            plan = self._cid(message.open.plan_cid)
            self.state = State.OPENING
            self._offered = max(common, default=None)
            return [OpenRequested(self._offered, message.open.grant, plan)]
        if self.state is State.IDLE:
            raise self._broken(f"the dispatcher sent {which} before Open")
        if which == "keep_alive":
            return [PeerAlive()]
        if which == "tasks":
            self._require(State.OPEN, "Tasks")
            return [TasksReceived(self._taken(message.tasks))]
        if which == "cancel":
            self._require(State.OPEN, "Cancel")
            named = set(message.cancel.shards)
            keys = tuple(key for key in self._open_tasks if not named or key[0] in named)
            return [CancelRequested(keys, not named)]
        raise self._broken("the dispatcher sent an empty message, or one of a newer protocol")

    def opened(self, node: str, numerics: str) -> node_pb2.NodeMessage:
        """Take the session: give the answer to Open.

        Raises:
            ProtocolError: Open has not come, was answered, or there is no common version.
        """
        self._require(State.OPENING, "Opened")
        if self._offered is None:
            raise self._broken("Opened without a common protocol version")
        self.state = State.OPEN
        self.version = self._offered
        return node_pb2.NodeMessage(opened=node_pb2.Opened(version=self._offered, node=node, numerics=numerics))

    def refuse(self, code: str, reason: str, *, need: int = 0, free: int = 0) -> node_pb2.NodeMessage:
        """Refuse the session, or give it up: the last message of the node; open tasks are void.

        Args:
            code: a code of `dim_pipelines.errors`.
            reason: one line for people.
            need: bytes of device memory needed, where that is the reason.
            free: bytes of device memory free.

        Raises:
            ProtocolError: Open has not come, or the session is closed.
        """
        if self.state not in (State.OPENING, State.OPEN):
            raise self._broken(f"Refused while the session is {self.state.name}")
        self.state = State.CLOSED
        self._refused = True
        self._open_tasks.clear()
        return node_pb2.NodeMessage(refused=node_pb2.Refused(code=code, reason=reason, need=need, free=free))

    def grant_credit(self, n: int) -> node_pb2.NodeMessage:
        """Allow `n` (at least 1) further tasks.

        Raises:
            ProtocolError: not open, or n is not positive.
        """
        self._require(State.OPEN, "Credit")
        if n < 1:
            raise self._broken(f"a credit of {n}")
        self.credit += n
        return node_pb2.NodeMessage(credit=node_pb2.Credit(n=n))

    def outcomes(self, outcomes: Sequence[Outcome]) -> node_pb2.NodeMessage:
        """Answer tasks, each exactly once.

        Raises:
            ProtocolError: not open, none, or a task is not open.
        """
        self._require(State.OPEN, "Outcomes")
        if not outcomes:
            raise self._broken("no outcomes in an Outcomes message")
        for outcome in outcomes:
            key = (outcome.shard, outcome.step, outcome.attempt)
            if key not in self._open_tasks:
                raise self._broken(f"an outcome of task {key}, which is not open")
            del self._open_tasks[key]
        return node_pb2.NodeMessage(
            outcomes=node_pb2.Outcomes(outcomes=[codec.outcome_to_wire(outcome) for outcome in outcomes])
        )

    def progress(self, shard: int, rows: int) -> node_pb2.NodeMessage:
        """Tell how many rows of a shard are computed.

        Raises:
            ProtocolError: not open.
        """
        self._require(State.OPEN, "Progress")
        return node_pb2.NodeMessage(progress=node_pb2.Progress(shard=shard, rows=rows))

    def keep_alive(self) -> node_pb2.NodeMessage:
        """Give a keep-alive.

        Raises:
            ProtocolError: Open has not come, or the session is closed.
        """
        if self.state not in (State.OPENING, State.OPEN):
            raise self._broken(f"KeepAlive while the session is {self.state.name}")
        return node_pb2.NodeMessage(keep_alive=node_pb2.KeepAlive())

    def close(self) -> tuple[TaskKey, ...]:
        """End the session (the stream is gone) and give the tasks that need not be answered any more."""
        self.state = State.CLOSED
        keys = self.open_tasks
        self._open_tasks.clear()
        return keys

    def _taken(self, message: node_pb2.Tasks) -> tuple[Task, ...]:
        if not message.tasks or len(message.tasks) > self.credit:
            raise self._broken(f"the dispatcher sent {len(message.tasks)} tasks for a credit of {self.credit}")
        tasks: list[Task] = []
        for item in message.tasks:
            key = (item.shard, item.step, item.attempt)
            if key in self._open_tasks:
                raise self._broken(f"the dispatcher sent task {key} twice")
            try:
                tasks.append(codec.task_from_wire(item))
            except ProtocolError:
                self.state = State.CLOSED
                raise
            self._open_tasks[key] = None
        self.credit -= len(tasks)
        return tuple(tasks)

    def _cid(self, raw: bytes) -> Cid:
        try:
            return codec.cid_from_wire(raw)
        except ProtocolError:
            self.state = State.CLOSED
            raise
