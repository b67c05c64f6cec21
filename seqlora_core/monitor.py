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
    """Shows nothing; override what you need.  The core never prints.

    Attributes:
        stopped_at: where a run that stops now can continue, as a part of a sentence.
    """

    stopped_at = "before the first step, and nothing was lost"

    def message(self, text: str) -> None:
        """Receive one sentence that the user should see, such as skipped layers or a resumed checkpoint."""

    def stage(self, text: str, done: int = 0, total: int = 0) -> None:
        """Receive what the run does now, such as "encoding 5 images and 36 prompts"; again as it gets further."""

    def stepped(self, report: StepReport) -> None:
        """Receive the report of a step.  The factors are consistent here: raising stops the run and loses nothing."""

    def held_out(self, step: int, loss: float) -> None:
        """Receive the loss of the images that are not trained on, after so many steps."""

    def previewed(self, latents: Tensor) -> None:
        """Receive a preview of the concept, latents [1, c, h, w]; `RunOptions` of the trainer sets how often."""

    def checkpointed(self, step: int, steps: int, written: bool = True) -> None:
        """Receive that a checkpoint holds `step` of `steps` steps, or that it could not be written."""
        self.stopped_at = f"at step {step} of {steps}" + ("" if written else ", which could not be saved")

    def cancelled(self) -> bool:
        """Return whether to stop; called before every step.  The run then saves a checkpoint and raises `Cancelled`."""
        return False

    def stop_if_cancelled(self) -> None:
        """Raise `errors.Cancelled` if the user asked to stop."""
        if self.cancelled():
            raise Cancelled


class Stage:
    """A stage of a run that tells its monitor how far it is.

    Args:
        text: what is done, such as "encoding 5 images and 36 prompts".
        total: the number of parts to do.
    """

    def __init__(self, monitor: Monitor, text: str, total: int) -> None:
        self._monitor, self._text, self._total = monitor, text, total

    def reached(self, done: int) -> None:
        """Report that `done` parts are done; call it before each part.

        Raises:
            Cancelled: the monitor asks to stop.
        """
        self._monitor.stage(self._text, done, self._total)
        self._monitor.stop_if_cancelled()


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
