"""Lets a loop check between two steps whether Ctrl-C or SIGTERM was received."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def ask_for_interrupt() -> Iterator[Callable[[], bool]]:
    """In this context the first signal is remembered, and a second one has its usual effect.

    Yields:
        A function that returns whether a signal was received; outside of the main thread, where Python does
        not deliver signals, always False.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    # A background job that ignores Ctrl-C continues to ignore it.
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    before = {n: handler for n, handler in handlers.items() if handler not in (None, signal.SIG_IGN)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()

    for number in before:
        signal.signal(number, remember)
    try:
        yield lambda: bool(received)
    finally:
        restore()
