"""How far a training run is: reports of its steps, and what becomes of their losses."""

import time
from collections.abc import Sequence

from ..monitor import Monitor, StepReport
from .plan import TrainingPlan

_CURVE_POINTS = 100
_FINAL_SHARE = 10  # the reported first and final losses are means over a tenth of the steps


class Progress:
    """Reports steps of the word and of the factors as those of one run."""

    def __init__(self, plan: TrainingPlan, monitor: Monitor) -> None:
        self._plan, self._monitor = plan, monitor
        self._started = time.monotonic()
        self._first: float | None = None  # passes that were left when this session began

    def report(self, word_step: int, step: int, loss: float) -> None:
        """Receive the numbers of finished steps."""
        plan = self._plan
        left = plan.passes_left(word_step, step)
        if self._first is None:
            last_pass = 1 if step == 0 else plan.passes_left(word_step, step - 1) - left
            self._first = left + last_pass
        seconds_left = (time.monotonic() - self._started) / (self._first - left) * left
        self._monitor.stepped(StepReport(word_step + step, plan.word_steps + plan.steps, loss, seconds_left))


def mean_of_tenth(losses: Sequence[float], last: bool) -> float:
    count = max(len(losses) // _FINAL_SHARE, 1)
    return sum(losses[-count:] if last else losses[:count]) / count


def loss_curve(losses: list[float]) -> list[float]:
    """At most `_CURVE_POINTS` means of consecutive losses: enough to draw, little to keep in every manifest."""
    stride = max(-(-len(losses) // _CURVE_POINTS), 1)
    parts = [losses[start : start + stride] for start in range(0, len(losses), stride)]
    return [round(sum(part) / len(part), 6) for part in parts]
