"""The paper's Tables 1a, 1b, 3 and 4 in its form, and the tables of the other sections."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from seqlora_core.training.config import ResolvedConfig

from .recipes import (
    CHANGED_RIVALS,
    COMPARED,
    CONTESTED,
    DEFAULTS,
    OURS,
    OWN,
    PLAIN_BASE,
    RIVAL,
    SEQLORA,
    SINGLE_LORA,
    SYSTEMS,
    VARIANTS,
    passes_per_step,
)
from .subsets import KINDS, PAIRS
from .summary import MEASURES, Mean, Summary, Table, correlation, summarize
from .tuning import rates

_ORDER = [system.name for system in SYSTEMS]
_SINGLE_SOURCE = "LoRA, averaged"  # its concepts were trained and tuned to be used alone
_SHOWN = ("final", "initial", "single", "forgetting")
_BLOCK = 4  # concepts of a row of the table of saturation


def of_count(summaries: Sequence[Summary], count: int) -> dict[str, Summary]:
    """The systems with that many concepts, in the order of the tables."""
    found = {summary.system: summary for summary in summaries if summary.concepts == count}
    return {name: found[name] for name in _ORDER if name in found}


def counts(summaries: Sequence[Summary]) -> list[int]:
    """All numbers of concepts, ascending."""
    return sorted({summary.concepts for summary in summaries})


def beside_single(summaries: Sequence[Summary]) -> list[tuple[Summary, Summary]]:
    """Ours and the LoRAs that were trained to be used alone, where there are both, by the number of concepts."""
    found = [of_count(summaries, count) for count in counts(summaries)]
    return [(s[OURS], s[_SINGLE_SOURCE]) for s in found if OURS in s and _SINGLE_SOURCE in s]


def overview(summaries: Sequence[Summary], count: int, plain: Mapping[str, float]) -> Table:
    """The README's table: all scores at one number of concepts, and the final ones at the others.

    Args:
        plain: concept -> the base's score with its class word alone; empty if that was not measured.
    """
    systems = of_count(summaries, count)
    others = {other: of_count(summaries, other) for other in counts(summaries) if other != count}
    rows = []
    for name, summary in systems.items():
        means = [summary.mean(measure) for measure in _SHOWN]
        left = [found[name].mean("final") if name in found else "-" for found in others.values()]
        rows.append([name, *means, *left])
    blank = ["-"] * (len(_SHOWN) - 1)
    if _SINGLE_SOURCE in systems:
        left = [s[_SINGLE_SOURCE].mean("single") if _SINGLE_SOURCE in s else "-" for s in others.values()]
        rows.append([SINGLE_LORA, systems[_SINGLE_SOURCE].mean("single"), *blank, *left])
    if plain and systems:
        rows.append([PLAIN_BASE, _of_first(plain, systems), *blank, *(_of_first(plain, s) for s in others.values())])
    columns = ["system", "final", "right after training", "alone", "forgetting", *(f"final of {n}" for n in others)]
    return Table("main", f"The comparison with {count} concepts, and what is left with more or fewer", columns, rows)


def _of_first(plain: Mapping[str, float], systems: Mapping[str, Summary]) -> Mean:
    """The base's own score for the concepts of these systems."""
    return Mean.of([plain[name] for name in next(iter(systems.values())).each["final"]])


def comparison(summaries: Sequence[Summary], count: int, plain: Mapping[str, float]) -> Table:
    """All systems with one number of concepts (Table 1a), what they cost, and two rows to compare with.

    Args:
        plain: concept -> the base's score with its class word alone; empty if that was not measured.
    """
    systems = of_count(summaries, count)
    ours, rows = systems.get(OURS), []
    for name, summary in systems.items():
        lead = ours.lead(summary) if ours and name != OURS else "-"
        costs = summary.costs
        means = [summary.mean(measure) for measure in _SHOWN]
        spent = [costs[key] for key in ("training_seconds", "fusion_seconds", "fusion_megabytes")]
        rows.append([name, *means, lead, *spent, len(summary.seeds)])
    if _SINGLE_SOURCE in systems:
        rows.append([SINGLE_LORA, systems[_SINGLE_SOURCE].mean("single"), *["-"] * 8])
    if plain and systems:
        rows.append([PLAIN_BASE, _of_first(plain, systems), *["-"] * 8])
    columns = ["system", "final", "right after training", "alone", "forgetting", f"{OURS}'s lead"]
    columns += ["training s a concept", "fusion s", "fusion MB", "seeds"]
    return Table(f"comparison-{count}", f"Identity with {count} concepts, mean ± SEM (Table 1a)", columns, rows)


def forgetting(summaries: Sequence[Summary]) -> Table:
    """Initial, final and forgetting at every number of concepts (Table 1b), of the systems that have a history."""
    names = [system.name for system in SYSTEMS if system.sequential and system.name in {s.system for s in summaries}]
    rows = []
    for count in counts(summaries):
        systems = of_count(summaries, count)
        for measure in ("initial", "final", "forgetting"):
            cells = [systems[name].mean(measure) if name in systems else "-" for name in names]
            rows.append([f"{count} concepts", measure, *cells])
    return Table("forgetting", "Forgetting (Table 1b)", ["concepts", "measure", *names], rows)


def scale(summaries: Sequence[Summary]) -> Table:
    """Final identity of every system by the number of concepts (Table 3)."""
    columns = counts(summaries)
    by_count = {count: of_count(summaries, count) for count in columns}
    names = [name for name in _ORDER if any(name in systems for systems in by_count.values())]
    rows = [[name, *(s[name].mean("final") if name in s else "-" for s in by_count.values())] for name in names]
    return Table("counts", "Final identity by the number of concepts (Table 3)", ["system", *map(str, columns)], rows)


def target(summaries: Sequence[Summary]) -> Table:
    """What the method is to reach, and whether it does: by default, and as the paper trains."""
    rows = []
    for count in counts(summaries):
        systems = of_count(summaries, count)
        for name in OWN:
            if name in systems:
                rows += [[count, name, *goal] for goal in _goals(systems[name], systems)]
    return Table("target", "The target", ["concepts", "system", "what", "measured", "limit", "met"], rows)


def _goals(ours: Summary, systems: Mapping[str, Summary]) -> list[list]:
    margin, goals = ours.mean("final").error or 0.0, []
    for name, summary in systems.items():
        if name in COMPARED:
            lead = ours.lead(summary)
            least = max(margin, lead.error or 0.0)  # of the concepts, or of the lead: the larger
            goals.append([f"final above {name} by more than one SEM", lead, least, _met(lead.value > least)])
    if RIVAL in systems:
        own, half = ours.mean("forgetting"), systems[RIVAL].mean("forgetting").value / 2
        goals.append([f"forgetting at most half of {RIVAL}'s", own, half, _met(own.value <= half)])
    if _SINGLE_SOURCE in systems:
        single = systems[_SINGLE_SOURCE].mean("single")
        least = single.value - (single.error or 0.0)
        for words, measure in (("right after training", "initial"), ("final", "final")):
            mean = ours.mean(measure)
            goals.append([f"{words} within one SEM of {SINGLE_LORA}", mean, least, _met(mean.value >= least)])
    return goals


def ablation(results: Sequence[dict]) -> Table:
    """One setting of the first row changed at a time (Table 4)."""
    found = {(result["factor"], result["value"]): result for result in results}
    first, rows = found.get((VARIANTS[0].factor, VARIANTS[0].value)), []
    for variant in VARIANTS:
        result = found.get((variant.factor, variant.value))
        if result:
            summary = summarize([result])[0]
            means = [summary.mean(measure) for measure in _SHOWN]
            loss = summary.lead(summarize([first])[0]) if first and result is not first else "-"
            settings, seconds = result["settings"], summary.costs["training_seconds"]
            rows.append([variant.factor, variant.value, *means, loss, *rates(settings), _passes(settings), seconds])
    columns = ["factor", "value", "final", "right after training", "alone", "forgetting", "against the first"]
    columns += ["alpha", "beta", "passes", "s a concept"]
    return Table("ablation", "Ablation at 16 concepts (Table 4)", columns, rows)


def contested(results: Sequence[dict], choices: Sequence[dict]) -> Table:
    """What the ablation leaves open, by the final score of the concepts that decide between near learning rates.

    Args:
        choices: of learning rates; one of them has the default's score.
    """
    own = next((choice for choice in choices if choice["method"] == SEQLORA.tuning), {})
    rows = [["as by default", "", pair["score"]] for pair in own.get("finals", ()) if _chosen(own, pair)]
    for variant in CONTESTED:
        finals = [r["final"] for r in results if (r["factor"], r["value"]) == (variant.factor, variant.value)]
        if finals:
            rows.append([variant.factor, variant.value, fmean(finals)])
    columns = ["factor", "value", "identity of 16, two seeds"]
    return Table("choices", "Settings near to the default, on the concepts that decide step sizes", columns, rows)


def _passes(settings: Mapping[str, object]) -> int:
    """Passes per concept as recipes count them: with those that a product with a Hessian costs."""
    config = ResolvedConfig.from_dict(settings)
    return config.steps * passes_per_step(config)


def defaults(results: Sequence[dict]) -> Table:
    """`train` with its defaults, and with one number changed at a time."""
    found = {(result["setting"], result["value"]): result for result in results}
    rows = []
    for variant in DEFAULTS:
        if result := found.get((variant.factor, variant.value)):
            summary = summarize([result])[0]
            means = [summary.mean(measure) for measure in _SHOWN]
            settings = result["settings"]
            rows.append([variant.factor, variant.value, *means, *rates(settings), _passes(settings)])
    columns = ["setting", "value", "final", "right after training", "alone", "forgetting", "alpha", "beta", "passes"]
    return Table("defaults", "The numbers of `train`, on the concepts that step sizes are chosen on", columns, rows)


def orders(results: Sequence[dict], main: Sequence[dict]) -> Table:
    """The same concepts in other orders; order 0 is the main table's, where those that look alike are neighbours."""
    rows = []
    for result in [*_comparable(main, results), *results]:
        summary = summarize([result])[0]
        means = [summary.mean(measure) for measure in ("final", "initial", "forgetting")]
        rows.append([result["system"], result.get("order", 0), *means])
    columns = ["system", "order", "final", "right after training", "forgetting"]
    return Table("order", "Order of the concepts", columns, sorted(rows, key=lambda row: (row[0], row[1])))


def rivals(results: Sequence[dict], main: Sequence[dict]) -> Table:
    """The rivals as in the main table, and with single settings of ours."""
    found = {"-": _comparable(main, results)}
    found |= {change: [result for result in results if result["change"] == change] for change in CHANGED_RIVALS}
    rows = []
    for change, these in found.items():
        for summary in summarize(these):
            rows.append([summary.system, change, *(summary.mean(measure) for measure in _SHOWN)])
    rows.sort(key=lambda row: _ORDER.index(row[0]))
    columns = ["system", "changed", "final", "right after training", "alone", "forgetting"]
    return Table("rivals", f"The rivals with settings of {OURS}", columns, rows)


def _comparable(main: Sequence[dict], results: Sequence[dict]) -> list[dict]:
    keys = {(result["system"], result["concepts"], result["seed"]) for result in results}
    return [result for result in main if (result["system"], result["concepts"], result["seed"]) in keys]


def saturation(results: Sequence[dict]) -> Table:
    """By the place in the order of training, as layers fill up."""
    rows = []
    for result in results:
        names = list(result["scores"]["final"])
        for start in range(0, len(names), _BLOCK):
            block = names[start : start + _BLOCK]
            skipped = [result["layers_skipped"][name] for name in block]
            means = [Mean.of([result["scores"][measure][name] for name in block]) for measure in MEASURES]
            rows.append([result["settings"]["rank"], f"{start + 1} to {start + len(block)}", max(skipped), *means])
    columns = ["rank", "concepts", "layers without room", "alone", "right after training", "final"]
    return Table("saturation", "When layers are full", columns, rows)


def subsets(results: Sequence[dict]) -> Table:
    """Pairs, triples and halves composed by themselves, mean over subsets."""
    found = {result["system"]: result for result in results}
    rows = [
        [
            name,
            *(Mean.of(found[name]["members"][k]) for k in KINDS),
            *(Mean.of(found[name]["together"][k]) for k in PAIRS),
        ]
        for name in _ORDER
        if name in found
    ]
    columns = ["system", *KINDS, *(f"{kind}, in one picture" for kind in PAIRS)]
    return Table("subsets", "Subsets composed alone", columns, rows)


def base_drift(results: Sequence[dict]) -> Table:
    """How alike images of other things stay with the first concepts in place."""
    found = {result["system"]: result["alike"] for result in results}
    sizes = sorted({int(size) for alike in found.values() for size in alike})
    rows = [[name, *(found[name].get(str(size), "-") for size in sizes)] for name in _ORDER if name in found]
    columns = ["system", *(f"beside {size}" if size else "the base's own" for size in sizes)]
    return Table("others", "Pictures of other things, beside the first concepts", columns, rows)


def forecasts(results: Sequence[dict]) -> Table:
    """Rank correlation of forecast crosstalk and measured forgetting."""
    found = {result["system"]: result for result in results}
    rows = []
    for name in [name for name in _ORDER if name in found]:
        expected, measured = (list(found[name][key].values()) for key in ("forecast", "forgetting"))
        rows.append([name, Mean.of(expected), Mean.of(measured), correlation(expected, measured)])
    columns = ["system", "forecast crosstalk", "measured forgetting", "rank correlation over concepts"]
    return Table("forecast", "Forecast and measured forgetting", columns, rows)


def tuning(choices: Sequence[dict]) -> Table:
    """Every trial of the choice of learning rates."""
    rows = []
    for choice in choices:
        finals = {rates(final): final["score"] for final in choice.get("finals", ())}
        for trial in choice["trials"]:
            pair = rates(trial)
            mark = "chosen" if _chosen(choice, trial) else ""
            rows.append([choice["method"], *pair, trial["score"], finals.get(pair, ""), mark])
    columns = ["method", "alpha", "beta", "identity", "of twice as many, two seeds", ""]
    return Table("tuning", "Step sizes tried", columns, rows)


def _chosen(choice: dict, trial: dict) -> bool:
    return rates(choice) == rates(trial)


def _met(condition: bool) -> str:
    return "yes" if condition else "no"
