"""Who joins a running batch, who is drained, who is cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.scheduling.attendance import Changes, Link, Presence, Standing, attend

READY = Standing(Presence.READY)
DOUBTFUL = Standing(Presence.DOUBTFUL, "silent")
LEAVING = Standing(Presence.LEAVING, "paused")
GONE = Standing(Presence.GONE, "revoked")
names = st.sampled_from("abcdefgh")


def test_the_best_of_the_ready_join_as_far_as_there_is_room() -> None:
    pool = {"a": READY, "b": READY, "c": DOUBTFUL, "d": LEAVING, "e": READY}
    assert attend(pool, {}, ["e", "b", "a"], 2) == Changes(("e", "b"))
    assert attend(pool, {"x": Link.OPEN}, ["e"], 2).cut == {"x": "it is in the pool no more"}
    assert attend(pool, {"a": Link.OPEN}, ["e", "b"], 1).join == ()


def test_what_a_node_says_counts_at_once_and_what_others_doubt_does_not() -> None:
    links = dict.fromkeys("abcd", Link.OPEN)
    changes = attend({"a": READY, "b": DOUBTFUL, "c": LEAVING, "d": GONE}, links, [], 9)
    assert changes == Changes((), (), {"c": "paused"}, {"d": "revoked"})


def test_a_draining_node_goes_on_when_it_is_ready_again_and_is_cut_when_it_is_out() -> None:
    links = dict.fromkeys("abcd", Link.DRAINING)
    changes = attend({"a": READY, "b": DOUBTFUL, "c": LEAVING, "d": GONE}, links, ["a"], 9)
    assert changes == Changes((), ("a",), {}, {"d": "revoked"})


def test_an_ended_link_may_be_made_again_a_barred_one_never() -> None:
    pool = {"a": READY, "b": READY}
    changes = attend(pool, {"a": Link.ENDED, "b": Link.BARRED}, ["b", "a"], 9)
    assert changes == Changes(("a",))


def test_one_that_is_cut_or_drained_makes_room() -> None:
    pool = {"a": GONE, "b": LEAVING, "c": READY, "d": READY, "e": READY}
    assert attend(pool, {"a": Link.OPEN, "b": Link.OPEN}, ["c", "d", "e"], 2).join == ("c", "d")


@given(
    st.dictionaries(names, st.sampled_from([READY, DOUBTFUL, LEAVING, GONE])),
    st.dictionaries(names, st.sampled_from(list(Link))),
    st.permutations("abcdefgh"),
    st.integers(1, 9),
)
def test_laws(pool: dict[str, Standing], links: dict[str, Link], order: list[str], room: int) -> None:
    changes = attend(pool, links, order, room)
    joining = set(changes.join)
    for node in joining:
        assert pool[node].presence is Presence.READY
        assert links.get(node, Link.ENDED) is Link.ENDED
    assert not joining & {*changes.drain, *changes.cut, *changes.resume}
    assert not changes.drain.keys() & changes.cut.keys()
    for node in (*changes.drain, *changes.cut):
        assert pool.get(node, GONE).presence in (Presence.LEAVING, Presence.GONE)
        assert links[node] in (Link.OPEN, Link.DRAINING)
    for node, link in links.items():  # nobody who is out keeps a session
        if link in (Link.OPEN, Link.DRAINING) and pool.get(node, GONE).presence is Presence.GONE:
            assert node in changes.cut
    used = {node for node, link in links.items() if link is Link.OPEN} - changes.drain.keys() - changes.cut.keys()
    assert not joining or len(used | set(changes.resume) | joining) <= room
