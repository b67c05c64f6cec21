"""A training run in a terminal: a progress bar with loss and time left; Ctrl-C stops at the end of a step."""

import logging
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from ..monitor import Monitor, StepReport

_log = logging.getLogger("seqlora")


class StepBar:
    """A progress bar of the steps on stderr, with the loss and the time left.

    Args:
        hidden: draw nothing.
    """

    def __init__(self, hidden: bool = False) -> None:
        self._hidden = hidden
        self._bar: tqdm | None = None
        self._held_out: dict[str, str] = {}

    def show(self, report: StepReport) -> None:
        """Draw a step; one that is not after the last is of the next training run, which gets a bar of its own."""
        if self._bar is not None and report.step <= self._bar.n:
            self.close()
        if self._bar is None:
            interval = 0.2 if sys.stderr.isatty() else 30  # seconds; a log file should get few lines
            first = {"total": report.steps, "initial": report.step - 1, "unit": "step", "disable": self._hidden}
            self._bar = tqdm(**first, dynamic_ncols=True, mininterval=interval)
        self._bar.set_postfix(loss=f"{report.loss:.4f}", **self._held_out, refresh=False)
        self._bar.update()
        if report.step == report.steps:
            self.close()

    def held_out(self, loss: float) -> None:
        """Show the loss of the held-out images with the next steps."""
        self._held_out = {"held_out": f"{loss:.4f}"}

    def close(self) -> None:
        """Leave the bar as it is, and begin a new line."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None


class TerminalMonitor(Monitor):
    """Shows progress and messages on stderr.

    Args:
        hidden: show nothing, and only watch for Ctrl-C.
    """

    def __init__(self, hidden: bool = False) -> None:
        self._hidden = hidden
        self._bar = StepBar(hidden)
        self._stage = ""
        self._interrupted = threading.Event()

    def message(self, text: str) -> None:
        if not self._hidden:
            _log.info(text)

    def stage(self, text: str, done: int = 0, total: int = 0) -> None:
        if text != self._stage:
            self.message(text)
        self._stage = text

    def stepped(self, report: StepReport) -> None:
        self._bar.show(report)

    def held_out(self, step: int, loss: float) -> None:
        self._bar.held_out(loss)

    def cancelled(self) -> bool:
        return self._interrupted.is_set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside the block, the first Ctrl-C asks the training run to stop; the second one interrupts at once."""

        def interrupt(signum: int, frame: object) -> None:
            if self._interrupted.is_set():
                raise KeyboardInterrupt
            self._interrupted.set()

        previous = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)
            self._bar.close()


def quiet_libraries() -> None:
    """Turn off the progress bars and advice of diffusers and transformers; their errors still show."""
    import diffusers.utils.logging
    import transformers.utils.logging

    warnings.filterwarnings("ignore", category=FutureWarning)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
