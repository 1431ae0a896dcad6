"""The portal: values, errors and interrupts across the bridge."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Iterator

import pytest

from dim_pipelines.dispatch.portal import Portal
from dim_pipelines.errors import Cancelled, InputError


@pytest.fixture
def portal() -> Iterator[Portal]:
    with Portal() as portal:
        yield portal


class Interrupt(BaseException):
    pass


async def give(value: int) -> int:
    return value


async def fail() -> None:
    raise InputError("it is wrong")


def test_values_and_errors_come_back(portal: Portal) -> None:
    assert portal.call(give(5)) == 5
    with pytest.raises(InputError, match="it is wrong"):
        portal.call(fail())


def test_calls_share_one_loop_from_any_thread(portal: Portal) -> None:
    async def loop() -> int:
        return id(asyncio.get_running_loop())

    found: set[int] = set()
    threads = [threading.Thread(target=lambda: found.add(portal.call(loop()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {portal.call(loop())}


@pytest.mark.parametrize("stubborn", [False, True])
def test_an_interrupt_cancels_the_coroutine_and_waits_a_second_at_most(portal: Portal, stubborn: bool) -> None:
    began, ended = threading.Event(), threading.Event()
    release = threading.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            if stubborn:
                while not release.is_set():  # noqa: ASYNC110 - an asyncio.Event cannot be set from the test's thread
                    await asyncio.sleep(0.01)
            raise
        finally:
            ended.set()

    caught: list[BaseException] = []

    def call() -> None:
        try:
            portal.call(work())
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert began.wait(60)
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Interrupt))
    thread.join(60)
    assert isinstance(caught[0], Interrupt)
    assert ended.is_set() is False if stubborn else ended.wait(60)
    release.set()
    assert ended.wait(60)


def test_a_cancelled_coroutine_is_a_dim_error(portal: Portal) -> None:
    async def give_up() -> None:
        raise asyncio.CancelledError

    with pytest.raises(Cancelled):
        portal.call(give_up())


def test_it_refuses_to_wait_for_itself(portal: Portal) -> None:
    async def inside() -> None:
        portal.call(give(1))

    with pytest.raises(RuntimeError, match="its own event loop"):
        portal.call(inside())


def test_closing_ends_what_runs() -> None:
    portal = Portal()
    began, ended = threading.Event(), threading.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.sleep(600)
        finally:
            ended.set()

    def call() -> None:
        with pytest.raises(Cancelled):
            portal.call(work())

    thread = threading.Thread(target=call)
    thread.start()
    assert began.wait(60)
    portal.close()
    portal.close()
    thread.join(60)
    assert ended.is_set()
    assert not thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        portal.call(give(1))
