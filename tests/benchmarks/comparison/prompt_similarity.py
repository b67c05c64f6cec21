"""How far a method stays behind one LoRA per concept, for prompts that resemble an earlier concept's and for others."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from seqlora_core.bank.names import default_token
from seqlora_core.data.prompts import subject_prompt
from seqlora_core.mini import MiniConcept
from seqlora_core.model.base import Base

from .recipes import OURS
from .summary import Summary, Table, correlation


def nearest_prompts(base: Base, concepts: Sequence[MiniConcept]) -> dict[str, float]:
    """Measure each prompt's distance to the nearest prompt of an earlier concept, relative to its own norm.

    Args:
        concepts: in the order of training; the first has no earlier one and is left out.
    """
    prompts = [base.encode_prompt(subject_prompt(f"{default_token(c.name)} {c.class_word}")) for c in concepts]
    return {
        concept.name: min(((prompt - other).norm() / prompt.norm()).item() for other in prompts[:place])
        for place, (concept, prompt) in enumerate(zip(concepts, prompts, strict=True))
        if place
    }


def prompt_similarity(pairs: Sequence[tuple[Summary, Summary]], distance: Mapping[str, float]) -> Table:
    """Compare what concepts lack right after training between the nearer and the farther half of prompts.

    Args:
        pairs: for every number of concepts, ours and the LoRAs that were trained to be used alone.
        distance: concept -> distance of its prompt (see `nearest_prompts`).
    """
    rows = []
    for ours, single in pairs:
        names = sorted(set(distance) & set(ours.each["initial"]), key=distance.get)
        lacks = [single.each["single"][name] - ours.each["initial"][name] for name in names]
        half = len(names) // 2
        rank = correlation([distance[name] for name in names], lacks)
        rows.append([ours.concepts, distance[names[half]], fmean(lacks[:half]), fmean(lacks[half:]), rank])
    columns = ["concepts", "median distance to the nearest earlier prompt", "nearer half lacks", "farther half lacks"]
    caption = f"What {OURS} lacks right after training beside one LoRA alone, by the distance of prompts"
    return Table("likeness", caption, [*columns, "rank correlation over concepts"], rows)
