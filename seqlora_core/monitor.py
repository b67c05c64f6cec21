"""How a training run reports to its caller and checks for cancellation."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .errors import Cancelled


@dataclass(frozen=True)
class StepReport:
    """The report of one finished step.

    Attributes:
        step: the number of finished steps, from 1.
        steps: the number of steps of the training run.
        loss: the loss before the step, including its regularization.
        seconds_left: an estimate from the steps finished so far.
    """

    step: int
    steps: int
    loss: float
    seconds_left: float


class Monitor:
    """Does nothing; override what you need.  The core never prints."""

    def message(self, text: str) -> None:
        """Receive one sentence that the user should see, such as skipped layers or a resumed checkpoint."""

    def stepped(self, report: StepReport) -> None:
        """Receive the report of a step.  The factors are consistent here: raising stops the run and loses nothing."""

    def previewed(self, latents: Tensor) -> None:
        """Receive a preview of the concept, latents [1, c, h, w]; `RunOptions` of the trainer sets how often."""

    def cancelled(self) -> bool:
        """Return whether to stop; called before every step.  The run then saves a checkpoint and raises `Cancelled`."""
        return False

    def stop_if_cancelled(self) -> None:
        """Raise `errors.Cancelled` if the user asked to stop."""
        if self.cancelled():
            raise Cancelled


def wait_for_others(monitor: Monitor) -> Callable[[], None]:
    """Return what `Bank.training` calls while another process trains in the bank.

    It reports once that the bank is in use, and checks for cancellation at every call.

    Raises:
        Cancelled: (the returned function) the monitor asks to stop.
    """
    reported = False

    def waiting() -> None:
        nonlocal reported
        monitor.stop_if_cancelled()
        if not reported:
            monitor.message("Another training run is using this bank; waiting for it to finish.")
        reported = True

    return waiting
