"""Which node gets which shard: a stateful property, and each rule by itself."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dim_pipelines.scheduling.assignment import (
    AVOID_S,
    MAX_COPIES,
    Assigned,
    Assignment,
    Copy,
    GivenUp,
    ShardState,
)
from dim_pipelines.scheduling.retry import BUSY_DELAY_S, MAX_BUSY_DELAY_S, MAX_FREE, Failure, RetryStrategy

BROKEN = Failure("engine_failed", "it broke")
GONE = Failure("node_unreachable", "it is gone")
BUSY = Failure("node_busy", "no room")
BAD = Failure("input", "row 1 is bad")


def send(assignment: Assignment, node: str, n: int, now: float = 0.0) -> list[Assigned]:
    """Claim, make ready and take."""
    assignment.ready(node, assignment.claim(node, n, now))
    return assignment.take(node, n, now)


def shards(tasks: list[Assigned]) -> list[int]:
    return [task.shard for task in tasks]


class Scheduling(RuleBasedStateMachine):
    """Nodes come and go, claim, compute, fail and die in any order."""

    nodes = st.sampled_from(["a", "b", "c"])

    @initialize(count=st.integers(1, 30), data=st.data())
    def begin(self, count: int, data: st.DataObject) -> None:
        waiting = data.draw(st.lists(st.integers(0, count - 1), unique=True).map(sorted))
        self.assignment = Assignment(count, waiting, RetryStrategy(max_attempts=10**6))
        self.wanted = set(waiting)
        self.joined: set[str] = set()
        self.staging: dict[str, list[int]] = {}
        self.running: dict[str, list[Assigned]] = {}
        self.seen: set[tuple[int, int]] = set()
        self.done: list[int] = []
        self.now = 0.0

    @rule(node=nodes)
    def join(self, node: str) -> None:
        self.assignment.join(node)
        self.joined.add(node)

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.joined)
    @rule(data=st.data(), n=st.integers(1, 8), silent=st.sets(nodes))
    def claim(self, data: st.DataObject, n: int, silent: set[str]) -> None:
        node = data.draw(st.sampled_from(sorted(self.joined)))
        claimed = self.assignment.claim(node, n, self.now, silent)
        assert len(claimed) == len(set(claimed)) <= n
        self.staging.setdefault(node, []).extend(claimed)

    @precondition(lambda self: self.joined)
    @rule(data=st.data(), held=st.lists(st.integers(0, 29)))
    def hold(self, data: st.DataObject, held: list[int]) -> None:
        node = data.draw(st.sampled_from(sorted(self.joined)))
        self.assignment.hold(node, [shard for shard in held if shard in self.wanted])

    @rule(node=nodes, good=st.booleans())
    def stage(self, node: str, good: bool) -> None:
        staged = self.staging.pop(node, [])
        (self.assignment.ready if good else self.assignment.unready)(node, staged)

    @precondition(lambda self: self.joined)
    @rule(data=st.data(), n=st.integers(1, 8))
    def take(self, data: st.DataObject, n: int) -> None:
        node = data.draw(st.sampled_from(sorted(self.joined)))
        for task in self.assignment.take(node, n, self.now):
            assert (task.shard, task.attempt) not in self.seen, "an attempt has one number"
            self.seen.add((task.shard, task.attempt))
            self.running.setdefault(node, []).append(task)

    @precondition(lambda self: any(self.running.values()))
    @rule(data=st.data(), good=st.booleans(), failure=st.sampled_from([BROKEN, BUSY, GONE]))
    def answer(self, data: st.DataObject, good: bool, failure: Failure) -> None:
        node = data.draw(st.sampled_from(sorted(node for node, tasks in self.running.items() if tasks)))
        task = data.draw(st.sampled_from(self.running[node]))
        self.running[node].remove(task)
        if good:
            if self.assignment.computed(node, task.shard, task.attempt, self.now):
                self.finish(task.shard)
        else:
            assert self.assignment.failed(node, task.shard, task.attempt, failure, self.now) is None

    def finish(self, shard: int) -> None:
        assert self.assignment.is_open(shard)
        assert self.assignment.done(shard)
        assert self.assignment.done(shard) == []
        self.done.append(shard)

    @rule(node=nodes)
    def leave(self, node: str) -> None:
        assert self.assignment.leave(node, self.now, GONE) == []
        self.joined.discard(node)
        self.running.pop(node, None)
        self.staging.pop(node, None)

    @rule(node=nodes)
    def drain(self, node: str) -> None:
        self.assignment.drain(node)  # what is being staged may be reported later: it is not the node's any more
        assert self.assignment.in_hand(node) == 0

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "assignment"):
            return
        states = [self.assignment.state(shard) for shard in self.wanted]
        assert len(self.done) == len(set(self.done))
        assert self.assignment.remaining == len(self.wanted) - len(self.done)
        assert self.assignment.waiting == states.count(ShardState.WAITING)
        for shard in self.wanted:
            copies = self.assignment.copies(shard)
            assert len(copies) <= MAX_COPIES
            assert bool(copies) == (self.assignment.state(shard) is ShardState.RUNNING)
            assert len({copy.node for copy in copies}) == len(copies)

    def teardown(self) -> None:
        """Whatever happened: one good node finishes the batch."""
        if not hasattr(self, "assignment"):
            return
        for node in ("a", "b", "c"):
            self.leave(node)
        self.assignment.join("last")
        for _ in range(200):
            self.now += AVOID_S
            for task in send(self.assignment, "last", 8, self.now):
                assert self.assignment.computed("last", task.shard, task.attempt, self.now)
                self.finish(task.shard)
        assert set(self.done) == self.wanted
        assert self.assignment.remaining == 0


TestScheduling = Scheduling.TestCase
TestScheduling.settings = settings(max_examples=40, stateful_step_count=40)


def test_shards_go_out_in_order_by_credit() -> None:
    assignment = Assignment(5, [0, 2, 3, 4])
    assignment.join("a")
    assert assignment.peek(2) == [0, 2]
    assert send(assignment, "a", 3) == [Assigned(0, 1), Assigned(2, 1), Assigned(3, 1)]
    assert assignment.state(1) is ShardState.DONE
    assert assignment.peek(9) == [4]


def test_local_data_comes_first_and_other_nodes_leave_none_behind() -> None:
    assignment = Assignment(6, range(6))
    assignment.join("a")
    assignment.join("b")
    assignment.hold("b", [4, 1])
    assert shards(send(assignment, "b", 3)) == [4, 1, 0]
    assert shards(send(assignment, "a", 9)) == [2, 3, 5]


def test_a_failed_shard_goes_elsewhere_first() -> None:
    assignment = Assignment(2, range(2))
    assignment.join("a")
    assignment.join("b")
    (first,) = send(assignment, "a", 1)
    assert assignment.failed("a", 0, first.attempt, BROKEN, 0.0) is None
    assert assignment.retries == 1
    assert shards(send(assignment, "a", 1)) == [1]
    assert assignment.claim("a", 1, 0.0) == []
    assert send(assignment, "b", 1) == [Assigned(0, 2)]


def test_a_failed_shard_comes_back_where_no_other_node_takes_it() -> None:
    assignment = Assignment(1, [0])
    assignment.join("a")
    assignment.join("b")
    send(assignment, "a", 1)
    assignment.failed("a", 0, 1, BROKEN, 0.0)
    assert assignment.claim("a", 1, AVOID_S - 1) == []
    assert assignment.claim("a", 1, AVOID_S) == [0]


def test_a_shard_is_given_up_after_its_attempts() -> None:
    assignment = Assignment(1, [0], RetryStrategy(max_attempts=2))
    assignment.join("a")
    send(assignment, "a", 1)
    assert assignment.failed("a", 0, 1, BROKEN, 0.0) is None
    send(assignment, "a", 1)
    assert assignment.failed("a", 0, 2, BROKEN, 0.0) == GivenUp(0, "a", BROKEN, 2)


def test_a_node_that_leaves_with_a_shards_last_attempt_gives_it_up() -> None:
    assignment = Assignment(1, [0], RetryStrategy(max_attempts=1))
    assignment.join("a")
    send(assignment, "a", 1)
    assert assignment.leave("a", 0.0, GONE) == [GivenUp(0, "a", GONE, 1)]
    assert assignment.leave("a", 0.0, GONE) == []


def test_bad_rows_are_believed_when_two_nodes_say_so() -> None:
    assignment = Assignment(1, [0])
    assignment.join("a")
    assignment.join("b")
    send(assignment, "a", 1)
    assert assignment.failed("a", 0, 1, BAD, 0.0) is None
    send(assignment, "b", 1)
    assert assignment.failed("b", 0, 2, BAD, 0.0) == GivenUp(0, "b", BAD, 2)


def test_bad_rows_wait_for_a_node_that_may_still_join() -> None:
    assignment = Assignment(1, [0])
    assignment.expect(["a", "b"])
    assignment.join("a")
    send(assignment, "a", 1)
    assert assignment.failed("a", 0, 1, BAD, 0.0) is None
    assignment.expect(["a"])
    send(assignment, "a", 1)
    assert assignment.failed("a", 0, 2, BAD, 0.0) == GivenUp(0, "a", BAD, 2)


def test_a_busy_nodes_shard_waits_and_costs_nothing() -> None:
    assignment = Assignment(1, [0])
    assignment.join("a")
    send(assignment, "a", 1)
    assert assignment.failed("a", 0, 1, BUSY, 0.0) is None
    assert assignment.claim("a", 1, BUSY_DELAY_S / 2) == []
    assert assignment.claim("a", 1, BUSY_DELAY_S) == [0]
    assert assignment.retries == 0


def test_what_is_claimed_and_not_sent_can_be_taken_by_an_idle_node() -> None:
    assignment = Assignment(4, range(4))
    assignment.join("slow")
    assignment.join("fast")
    assignment.ready("slow", assignment.claim("slow", 4, 0.0))
    assert assignment.in_hand("slow") == 4
    assert assignment.in_hand("nobody") == 0
    assert shards(send(assignment, "fast", 2)) == [3, 2]
    assert shards(assignment.take("slow", 9, 0.0)) == [0, 1]


def test_a_draining_node_gives_back_what_it_was_not_sent_and_keeps_what_it_computes() -> None:
    assignment = Assignment(4, range(4))
    assignment.join("a")
    assignment.join("b")
    assert [task.shard for task in send(assignment, "a", 1, 0.0)] == [0]
    assert assignment.claim("a", 2, 0.0) == [1, 2]
    assignment.ready("a", [1])
    assignment.drain("a")
    assert (assignment.waiting, assignment.in_hand("a")) == (3, 0)
    assignment.ready("a", [2])
    assert assignment.take("a", 9, 0.0) == []
    assert sorted(task.shard for task in send(assignment, "b", 9, 0.0)) == [1, 2, 3]
    assert assignment.computed("a", 0, 1, 1.0)
    assignment.drain("stranger")


def test_what_a_node_failed_is_not_taken_back_from_the_node_that_claimed_it() -> None:
    assignment = Assignment(1, [0])
    assignment.join("a")
    assignment.join("b")
    send(assignment, "a", 1)
    assignment.failed("a", 0, 1, BROKEN, 0.0)
    assignment.ready("b", assignment.claim("b", 1, 0.0))
    assert assignment.claim("a", 1, 0.0) == []
    assert shards(assignment.take("b", 1, 0.0)) == [0]


def test_a_straggler_gets_one_copy_elsewhere_when_the_queue_is_empty() -> None:
    assignment = Assignment(5, range(5))
    assignment.join("a")
    assignment.join("b")
    assignment.join("c")
    tasks = send(assignment, "a", 4)
    for task in tasks[:3]:
        assert assignment.computed("a", task.shard, task.attempt, 1.0)
        assignment.done(task.shard)
    assert shards(send(assignment, "b", 1, 1.9)) == [4]
    assert assignment.claim("b", 1, 1.9) == []
    assert send(assignment, "b", 3, 2.1) == [Assigned(3, 2)]
    assert assignment.hedges == 1
    assert send(assignment, "c", 3, 2.1) == []
    assert assignment.done(3) == [Copy("a", 1, 0.0), Copy("b", 2, 2.1)]
    assert not assignment.computed("a", 3, 1, 9.0)
    assert assignment.failed("a", 3, 1, BROKEN, 9.0) is None


def test_a_node_that_has_failed_a_shard_is_not_its_second_copy() -> None:
    assignment = Assignment(4, range(4))
    assignment.join("a")
    assignment.join("b")
    tasks = send(assignment, "a", 4)
    for task in tasks[:3]:
        assert assignment.computed("a", task.shard, task.attempt, 0.1)
        assignment.done(task.shard)
    assignment.failed("a", 3, tasks[3].attempt, BROKEN, 0.1)
    assert shards(send(assignment, "b", 1, 0.1)) == [3]
    assert assignment.claim("a", 1, 5.0) == []
    assert assignment.claim("a", 1, 5.0, {"b"}) == []
    assert assignment.claim("a", 1, 0.1 + AVOID_S) == [3]


def test_no_copies_before_there_is_a_median() -> None:
    assignment = Assignment(1, [0])
    assignment.join("a")
    assignment.join("b")
    send(assignment, "a", 1)
    assert assignment.claim("b", 1, 1e9) == []


def test_a_silent_nodes_tasks_get_a_copy_even_before_waiting_shards() -> None:
    assignment = Assignment(3, range(3))
    assignment.join("mute")
    assignment.join("b")
    send(assignment, "mute", 1)
    assert assignment.claim("b", 2, 0.1, {"mute"}) == [0, 1]
    assert assignment.claim("mute", 1, 0.1, {"mute"}) == [2]


def test_a_copy_outlives_the_other_ones_failure() -> None:
    assignment = Assignment(1, [0])
    assignment.join("a")
    assignment.join("b")
    send(assignment, "a", 1)
    assignment.ready("b", assignment.claim("b", 1, 0.0, {"a"}))
    assert assignment.take("b", 1, 0.0) == [Assigned(0, 2)]
    assert assignment.failed("a", 0, 1, BROKEN, 0.0) is None
    assert assignment.copies(0) == (Copy("b", 2, 0.0),)
    assert assignment.state(0) is ShardState.RUNNING


def test_a_copy_that_is_brought_while_the_first_one_fails_leaves_the_count_of_waiting_shards_right() -> None:
    assignment = Assignment(1, [0])
    assignment.join("a")
    assignment.join("b")
    send(assignment, "a", 1)
    assignment.ready("b", assignment.claim("b", 1, 0.0, {"a"}))
    assert assignment.failed("a", 0, 1, BROKEN, 0.0) is None
    assert assignment.waiting == 1
    assert assignment.take("b", 1, 0.0) == [Assigned(0, 2)]
    assert assignment.waiting == 0


def test_what_keeps_coming_back_without_cost_waits_longer_each_time_and_has_an_end() -> None:
    assignment = Assignment(1, [0], RetryStrategy(max_attempts=1))
    assignment.join("a")
    now = 0.0
    for _ in range(MAX_FREE):
        (sent,) = send(assignment, "a", 1, now)
        assert assignment.failed("a", 0, sent.attempt, BUSY, now) is None
        now += MAX_BUSY_DELAY_S
    (sent,) = send(assignment, "a", 1, now)
    assert assignment.failed("a", 0, sent.attempt, BUSY, now) == GivenUp(0, "a", BUSY, 1)


def test_a_shard_that_is_done_meanwhile_is_not_sent() -> None:
    assignment = Assignment(2, range(2))
    assignment.join("a")
    assignment.join("b")
    send(assignment, "a", 1)
    assignment.ready("b", assignment.claim("b", 1, 0.0, {"a"}))
    assignment.done(0)
    assert assignment.take("b", 1, 0.0) == []


def test_an_output_that_arrives_after_its_node_was_lost_still_counts() -> None:
    assignment = Assignment(2, range(2))
    assignment.join("a")
    send(assignment, "a", 1)
    assignment.leave("a", 0.0, GONE)
    assert assignment.done(0) == []
    assert (assignment.remaining, assignment.waiting) == (1, 1)
    assignment.join("b")
    assert shards(send(assignment, "b", 9)) == [1]


def test_unknown_nodes_staging_is_ignored() -> None:
    assignment = Assignment(1, [0])
    assignment.ready("x", [0])
    assignment.unready("x", [0])
    assert assignment.waiting == 1


def test_a_look_ahead_passes_over_what_is_claimed_out_of_turn() -> None:
    assignment = Assignment(5, range(5))
    assignment.join("a")
    assignment.hold("a", [0, 2])
    assert assignment.claim("a", 2, 0.0) == [0, 2]
    assert assignment.peek(2) == [1, 3]
    assert assignment.peek(9) == [1, 3, 4]


def test_word_of_a_shard_that_the_node_has_not_claimed_is_ignored() -> None:
    assignment = Assignment(2, range(2))
    assignment.join("a")
    assert assignment.claim("a", 1, 0.0) == [0]
    assignment.ready("a", [1])
    assignment.unready("a", [1])
    assert assignment.take("a", 9, 0.0) == []
    assert (assignment.waiting, assignment.in_hand("a")) == (1, 1)


def test_a_second_copy_is_only_brought_in_as_many_as_asked_and_taken_back_when_it_cannot_be() -> None:
    assignment = Assignment(3, range(3))
    assignment.join("a")
    assignment.join("b")
    send(assignment, "a", 3)
    assert assignment.claim("b", 2, 0.0, {"a"}) == [0, 1]
    assignment.unready("b", [0, 1])
    assert assignment.state(0) is ShardState.RUNNING
    assert assignment.waiting == 0


def test_the_second_copy_may_be_the_first_to_finish() -> None:
    assignment = Assignment(1, [0])
    assignment.join("a")
    assignment.join("b")
    send(assignment, "a", 1)
    assignment.ready("b", assignment.claim("b", 1, 0.0, {"a"}))
    assignment.take("b", 1, 0.0)
    assert assignment.computed("b", 0, 2, 1.0)
    assert not assignment.computed("c", 0, 2, 1.0)
    assert {copy.node for copy in assignment.done(0)} == {"a", "b"}
