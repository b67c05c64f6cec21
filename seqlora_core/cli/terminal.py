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


class TerminalMonitor(Monitor):
    """Shows progress and messages on stderr."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._interrupted = threading.Event()

    def message(self, text: str) -> None:
        _log.info(text)

    def stepped(self, report: StepReport) -> None:
        if self._bar is not None and report.step <= self._bar.n:  # the next training run
            self._bar.close()
            self._bar = None
        if self._bar is None:
            interval = 0.2 if sys.stderr.isatty() else 30  # seconds; a log file should get few lines
            self._bar = tqdm(
                total=report.steps, initial=report.step - 1, unit="step", dynamic_ncols=True, mininterval=interval
            )
        self._bar.set_postfix(loss=f"{report.loss:.4f}", refresh=False)
        self._bar.update()

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
            if self._bar is not None:
                self._bar.close()


def quiet_libraries() -> None:
    """Turn off the progress bars and advice of diffusers and transformers; their errors still show."""
    import diffusers.utils.logging
    import transformers.utils.logging

    warnings.filterwarnings("ignore", category=FutureWarning)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
