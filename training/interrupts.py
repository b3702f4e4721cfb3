"""Ctrl-C and SIGTERM end a run after the step under way, once its state is saved."""

import contextlib
import signal
from collections.abc import Iterator


class Interrupted(Exception):
    """The run was asked to stop and has saved its state; `signum` is the signal.

    Programs exit with 128 + signum, as shells count: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, signum: int, step: int):
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}; run again to resume")
        self.signum, self.step = signum, step


class StopRequest:
    """Set by the first signal; a second one ends the program at once."""

    signum: int | None = None


@contextlib.contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """While entered, SIGINT and SIGTERM set the request instead of ending the program."""
    request = StopRequest()

    def on_signal(signum, frame):
        del frame
        request.signum = signum
        for each, handler in previous.items():  # a second signal of either kind is not ours
            signal.signal(each, handler)

    previous = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        for signum in previous:
            signal.signal(signum, on_signal)
    except ValueError:  # not the main thread: signals stay with whoever has them
        yield request
        return
    try:
        yield request
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
