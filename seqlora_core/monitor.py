"""How a training reports to whoever started it, and hears that it should stop."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .errors import Cancelled


@dataclass(frozen=True)
class StepReport:
    """One finished step.

    Attributes:
        step: steps done so far, from 1.
        loss: the loss before the step, with the ridge term.
        seconds_left: an estimate from the steps of this run.
    """

    step: int
    steps: int
    loss: float
    seconds_left: float


class Monitor:
    """Does nothing; override what you need.  The core never prints."""

    def message(self, text: str) -> None:
        """One sentence that the user should see: skipped layers, a resumed checkpoint."""

    def stepped(self, report: StepReport) -> None:
        """After every step; the factors are consistent here, so raising stops the training with nothing lost."""

    def previewed(self, latents: Tensor) -> None:
        """Latents [1, 4, h, w] of an image as the concept makes it now, if `trainer.RunOptions` asks for previews."""

    def cancelled(self) -> bool:
        """Asked before every step; True stops the training with a checkpoint and `errors.Cancelled`."""
        return False


def wait_for_others(monitor: Monitor) -> Callable[[], None]:
    """What `Bank.training` calls while another process trains in the bank: tells so once, and listens for Cancel."""
    told = False

    def waiting() -> None:
        nonlocal told
        if monitor.cancelled():
            raise Cancelled
        if not told:
            monitor.message("Another training is using this bank; waiting for it to finish.")
        told = True

    return waiting
