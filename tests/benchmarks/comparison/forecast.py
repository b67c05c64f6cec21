"""The forgetting that diagnostics forecast for each concept, and the forgetting that was measured."""

from seqlora_core.data.prompts import subject_prompt
from seqlora_core.evaluation.interference import diagnose
from seqlora_core.model.sampling import inputs_while_sampling

from .measure import measure
from .recipes import System
from .runs import Run


def forecast(system: System, run: Run, count: int) -> dict:
    """Measure the crosstalk of every pair of concepts; forecast and measure forgetting for all but the last."""
    result = measure(system, run, count)
    selected = run.selected(run.learn(count))
    found = diagnose(
        selected,
        lambda one: inputs_while_sampling(run.base, subject_prompt(one.subject), one.scaled(), seed=run.config.seed),
    )
    initial, final = result["scores"]["initial"], result["scores"]["final"]
    names = list(initial)[:-1]  # nothing was learned after the last
    expected = found.forecast()
    return {
        "system": system.name,
        "concepts": count,
        "seed": run.config.seed,
        "crosstalk": dict(zip(expected, found.crosstalk().tolist(), strict=True)),
        "forecast": {name: expected[name] for name in names},
        "forgetting": {name: initial[name] - final[name] for name in names},
    }
