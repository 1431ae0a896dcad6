"""The portal: the one bridge from synchronous threads (Dagster's, the command line's) into one event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, Final, Self, TypeVar

from dim_pipelines.errors import Cancelled

CANCEL_S: Final = 1.0
"""Seconds that a cancelled call may take to end before its caller goes on."""
_SLICE_S: Final = 0.2

T = TypeVar("T")


class Portal:
    """One event loop in a daemon thread.

    What is awaited through one portal lives in one loop, so stores, channels and locks may be shared between calls.
    """

    def __init__(self) -> None:
        """Start the thread; returns once the loop runs."""
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._main, args=(started,), name="dim-portal", daemon=True)
        self._thread.start()
        started.wait()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop and give what it returns or raises. From any thread but the loop's own.

        An exception that reaches the calling thread meanwhile (Ctrl-C, Dagster's interrupt) cancels the coroutine,
        waits at most `CANCEL_S` for its end, and goes on to the caller.

        Raises:
            Cancelled: something in the loop cancelled the coroutine.
            RuntimeError: called from the loop's own thread, or after `close`.
        """
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("Portal.call from inside its own event loop would wait for itself")
        if self._loop.is_closed() or not self._thread.is_alive():
            coroutine.close()
            raise RuntimeError("the portal is closed")
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        tasks: list[asyncio.Task[T]] = []

        def start() -> None:
            tasks.append(self._loop.create_task(coroutine))
            tasks[0].add_done_callback(lambda task: _settle(future, task))

        def cancel() -> None:
            if tasks:
                tasks[0].cancel()
            else:  # the interrupt came before the start was queued
                coroutine.close()
                future.cancel()

        try:
            self._loop.call_soon_threadsafe(start)
            while not future.done():
                # in slices: an interrupt set from another thread does not wake a thread that waits for a lock
                concurrent.futures.wait([future], timeout=_SLICE_S)
            return future.result()
        except BaseException:
            if not future.done():
                self._loop.call_soon_threadsafe(cancel)
                concurrent.futures.wait([future], timeout=CANCEL_S)
            raise

    def close(self) -> None:
        """Cancel what still runs and end the thread; twice is once."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=2 * CANCEL_S)

    def __enter__(self) -> Self:
        """Give the portal itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close it."""
        self.close()

    def _main(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.call_soon(started.set)
        try:
            self._loop.run_forever()
        finally:
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.wait(tasks, timeout=CANCEL_S) if tasks else asyncio.sleep(0))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()


def _settle(future: concurrent.futures.Future[T], task: asyncio.Task[T]) -> None:
    if task.cancelled():
        future.set_exception(Cancelled("the call was cancelled"))
    elif (error := task.exception()) is not None:
        future.set_exception(error)
    else:
        future.set_result(task.result())
