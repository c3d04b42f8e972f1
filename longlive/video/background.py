"""One thread that works through a bounded queue, for encoders that must not hold up the rollout."""

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class _End:
    """Put behind the last item."""


class BackgroundWorker(Generic[Item]):
    """Calls ``work`` on every submitted item, in order, in a thread of its own.

    Encoders release the GIL, so the submitting thread goes on with the next block. It waits only
    when ``capacity`` items are pending: memory stays bounded when the disk is the slower side.

    After the first exception the remaining items are dropped, and the exception is raised by the
    next ``submit`` and by every ``finish``.

    Args:
        work: Called with one item at a time.
        at_end: Called last, in the same thread, with the exception that ``work`` raised or
            ``None``. What it raises itself counts as the worker's exception, and replaces it.
        capacity: Items that may wait.
        name: Of the thread, for debuggers.
    """

    def __init__(
        self,
        work: Callable[[Item], None],
        at_end: Callable[[BaseException | None], None],
        *,
        capacity: int,
        name: str,
    ) -> None:
        self._work = work
        self._at_end = at_end
        self._queue: queue.Queue[Item | _End] = queue.Queue(capacity)
        self._error: BaseException | None = None
        self._ended = False
        # A daemon: an interpreter that dies of an exception must not wait for an encoder.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> None:
        """Queue ``item``; wait while the queue is full.

        Raises:
            Exception: What the worker raised earlier.
            ValueError: After ``finish``.
        """
        if self._ended:
            raise ValueError("nothing can be submitted after finish()")
        self._raise_error()
        self._put(item)

    def finish(self) -> None:
        """Wait until every item is worked off and ``at_end`` has returned; may be called again.

        Raises:
            Exception: What the worker raised.
        """
        if not self._ended:
            self._put(_End())
            self._ended = True
        self._thread.join()
        self._raise_error()

    def _put(self, item: Item | _End) -> None:
        # In turns, since a thread that has ended never takes an item again.
        while self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        # Nobody sees the exception before ``at_end`` has had the chance to replace it.
        ending: BaseException | None = None
        try:
            while not isinstance(item := self._queue.get(), _End):
                self._work(item)
        except BaseException as error:
            ending = error
        try:
            self._at_end(ending)
        except BaseException as error:
            ending = error
        self._error = ending
