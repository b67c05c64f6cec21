"""Confine concepts: to their own words in the prompts, and to regions of the image.

All concepts' factors lie side by side in each layer, and one number per direction and token says how much it acts:
`y = W x + A (M * (Bᵀ x))`.  So the tokens of a text, and the places of an image, each have concepts of their own, at
the cost of one multiplication.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..data.own_words import own_word_rows
from ..errors import UserError
from ..model.adapters import Adapter, sum_adapters
from ..model.sd15 import receives_text
from .regions import Region, describe_cut_boxes
from .selection import SelectedConcept


@dataclass(frozen=True)
class Confinement:
    """Where each of C concepts acts; made by `confine`.

    Layers that receive the text know tokens of texts: text 0 is the global prompt, text i the prompt of region i - 1.
    Layers that receive image features know places of the image.

    Attributes:
        parts: the concepts.
        texts: the prompts of each text, as (negative prompt, prompt).
        regions: the regions.
        text: [1 + regions, 2, tokens, C], the factor of each concept for each token of each text, with its strength.
        everywhere: [C], the factor of each concept at all places of the image.
        regional: [regions, C], the factor of each concept at the places of each region, times the region's share.
        notes: what the user should know, as sentences.
    """

    parts: Sequence[SelectedConcept]
    texts: Sequence[tuple[str, str]]
    regions: Sequence[Region]
    text: Tensor
    everywhere: Tensor
    regional: Tensor
    notes: Sequence[str]

    @cached_property
    def adapters(self) -> dict[str, Adapter]:
        """The concepts' factors side by side, by canonical layer name, without the strengths."""
        return sum_adapters([(part.adapters, 1.0) for part in self.parts])

    @cached_property
    def owners(self) -> dict[str, Tensor]:
        """The index of the concept that each direction of `adapters` belongs to, [sum of ranks] per layer."""
        return {
            layer: torch.tensor(
                [
                    index
                    for index, part in enumerate(self.parts)
                    if layer in part.adapters
                    for _ in range(part.adapters[layer].rank)
                ]
            )
            for layer in self.adapters
        }

    def text_factors(self, layer: str, text: int = 0) -> Tensor:
        """Return M of a layer that receives the text: [2, tokens, sum of ranks], for negative prompt and prompt."""
        return self.text[text][..., self.owners[layer]]

    def place_factors(self, weights: Tensor) -> Tensor:
        """Return the factor of each concept at each place of the image, [N, C].

        Args:
            weights: [regions, N], the share of each region in each token (see `regions.region_weights`).
        """
        return self.everywhere.to(weights) + weights.mT @ self.regional.to(weights)

    def image_factors(self, layer: str, weights: Tensor) -> Tensor:
        """Return M of a layer that receives image features, [N, sum of ranks]; for `weights` see `place_factors`."""
        return self.place_factors(weights)[:, self.owners[layer]]


def confine(
    parts: Sequence[SelectedConcept],
    prompts: tuple[str, str],
    count: Callable[[str], int],
    tokens: int,
    *,
    words: Iterable[str] = (),
    regions: Sequence[Region] = (),
    own_words_in_regions: bool = False,
) -> Confinement:
    """Confine concepts to their own words in the global prompt, and to regions.

    In layers that receive the text, a concept acts on the keys and values of its own word in the global prompts, and
    in the regions where it is; there on those of the whole regional prompt, or with `own_words_in_regions` on those of
    its word alone.  In layers that receive image features, a concept of a region acts in its regions only, by their
    share; any other concept that a prompt names acts everywhere.  The empty prompt names none.

    Args:
        prompts: the global negative prompt and prompt.
        count: the number of tokens of a text, with the two that begin and end it.
        tokens: length of an encoded prompt; what is beyond it is cut.
        words: all learned words that the prompts may name.

    Raises:
        UserError: a region has a concept that is not selected.
    """
    texts = texts_of(prompts, regions)
    flat = [prompt for pair in texts for prompt in pair]
    rows = own_word_rows(flat, [part.subject for part in parts], count, tokens, words)  # [C, texts * 2, tokens]
    rows = rows.unflatten(1, (len(texts), 2)).permute(1, 2, 3, 0)
    return confine_rows(parts, texts, rows, regions, own_words_in_regions, f" in its first {tokens} tokens")


def texts_of(prompts: tuple[str, str], regions: Sequence[Region]) -> list[tuple[str, str]]:
    """List the texts of a composition: the global negative prompt and prompt, and those of each region."""
    negative, prompt = prompts
    own = [(negative if r.negative is None else r.negative, r.prompt if r.prompt.strip() else prompt) for r in regions]
    return [prompts, *own]


def confine_rows(
    parts: Sequence[SelectedConcept],
    texts: Sequence[tuple[str, str]],
    rows: Tensor,
    regions: Sequence[Region] = (),
    own_words_in_regions: bool = False,
    where: str = "",
) -> Confinement:
    """Confine concepts as `confine` does, where the tokens of their own words are known.

    Args:
        texts: from `texts_of`.
        rows: [texts, 2, tokens, C], 1 on the tokens of each concept's own word.
        where: the part of a prompt that is encoded, for the report.

    Raises:
        UserError: a region has a concept that is not selected.
    """
    named = rows.amax(2) > 0  # [texts, 2, C]
    strengths = torch.tensor([part.strength for part in parts])
    regional = _regional_strengths(regions, parts, named[1:, 1])
    in_regions = ~regional.isnan().all(0)
    regional = regional.nan_to_num(0.0)
    text = torch.empty_like(rows)
    text[0] = rows[0] * strengths
    text[1:] = regional[:, None, None] * (rows[1:] if own_words_in_regions else 1)
    in_prompts = named[0].any(0) & ~in_regions
    notes = [
        *describe_cut_boxes(regions),
        *_describe_unnamed(parts, in_prompts | in_regions, where),
        *describe_unconfined([part for part, acts in zip(parts, in_prompts.tolist(), strict=True) if acts]),
    ]
    return Confinement(parts, texts, regions, text, strengths * in_prompts, regional, notes)


def confine_to_own_words(parts: Sequence[SelectedConcept]) -> Confinement:
    """Confine concepts to their own words in prompts that are encoded later; other layers act everywhere."""
    strengths = torch.tensor([part.strength for part in parts])
    return Confinement(
        parts,
        [],
        [],
        torch.zeros(0, 2, 0, len(parts)),
        strengths,
        torch.zeros(0, len(parts)),
        describe_unconfined(parts),
    )


def _regional_strengths(regions: Sequence[Region], parts: Sequence[SelectedConcept], named: Tensor) -> Tensor:
    """The strength of each concept in each region, [regions, C]; NaN where the concept is not in the region.

    Args:
        named: [regions, C], whether the region's prompt names the concept.
    """
    own = torch.tensor([part.strength for part in parts])
    strengths = torch.where(named, own, torch.nan)
    places = {part.name: index for index, part in enumerate(parts)}
    for row, region in zip(strengths, regions, strict=True):
        if region.concepts is None:
            continue
        row.fill_(torch.nan)
        for name, strength in region.concepts:
            if name not in places:
                raise UserError(
                    f"The region {region.label} has the concept {name!r}, which is not selected: select it, too."
                )
            row[places[name]] = strength
    return strengths


def _describe_unnamed(parts: Sequence[SelectedConcept], acts: Tensor, where: str) -> list[str]:
    return [
        f"No prompt names {part.subject!r}{where}: the concept {part.name!r} does nothing."
        for part, acting in zip(parts, acts.tolist(), strict=True)
        if not acting
    ]


def describe_unconfined(parts: Sequence[SelectedConcept]) -> list[str]:
    """Report the layers that own words cannot confine, as at most one sentence."""
    counts = {part.name: sum(not receives_text(layer) for layer in part.adapters) for part in parts}
    listed = ", ".join(f"{count} layers of {name!r}" for name, count in counts.items() if count)
    if not listed:
        return []
    return [f"These receive image features, so they act everywhere, not on their word alone: {listed}."]
