"""Work beside the training, in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Background(Generic[Made]):
    """Work done by a thread, for which a process that ends at once does not wait.

    Whoever waits for the work waits for the thread too: one that still lets go of its tensors while the process ends is
    torn out of torch's code, and that aborts the process in the place of its exit code.
    """

    def __init__(self, work: Callable[[], Made], name: str) -> None:
        self._future: Future[Made] = Future()
        self._thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], Made]) -> None:
        try:
            self._future.set_result(work())
        except BaseException as error:
            self._future.set_exception(error)

    @property
    def failed(self) -> bool:
        """Whether it has, so far."""
        return self._future.done() and self._future.exception() is not None

    def wait(self) -> BaseException | None:
        """Until it is over; what it has failed for."""
        self._thread.join()
        return self._future.exception()

    def result(self) -> Made:
        """What it has made, when it is over.

        Raises:
            BaseException: what it has failed for.
        """
        self._thread.join()
        return self._future.result()
