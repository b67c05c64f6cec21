"""What diagnostics expect of each concept, beside what became of it."""

from seqlora_core.data.prompts import subject_prompt
from seqlora_core.evaluation.interference import diagnose
from seqlora_core.model.sampling import inputs_while_sampling

from .measure import measure
from .recipes import System
from .runs import Run


def forecast(system: System, run: Run, count: int) -> dict:
    """Crosstalk of every pair; and that of all later concepts beside measured forgetting, of all but the last."""
    result = measure(system, run, count)
    parts = run.parts(run.learn(count))
    found = diagnose(
        parts,
        lambda part: inputs_while_sampling(run.base, subject_prompt(part.subject), part.scaled(), seed=run.config.seed),
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
