"""Paired differences between systems, with bootstrap intervals."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000

Scores = Mapping[tuple[int, str], float]  # by seed and concept


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences.

    Attributes:
        low, high: the 95 % interval.
        wins: in how many pairs the first is larger.
        pairs: concepts times seeds.
    """

    mean: float
    low: float
    high: float
    wins: int
    pairs: int

    @property
    def decided(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def paired(first: Scores, second: Scores) -> Difference | None:
    """Compare two systems on the concepts and seeds that both have; None if there are none.

    Concepts are drawn with replacement, each with all of its seeds: seeds of one concept are not independent.
    """
    common = sorted(first.keys() & second.keys())
    if not common:
        return None
    by_concept: dict[str, list[float]] = {}
    for seed, concept in common:
        by_concept.setdefault(concept, []).append(first[seed, concept] - second[seed, concept])
    low, high = bootstrap_interval(list(by_concept.values()))
    differences = [difference for own in by_concept.values() for difference in own]
    wins = sum(difference > 0 for difference in differences)
    return Difference(float(np.mean(differences)), low, high, wins, len(differences))


def bootstrap_interval(groups: list[list[float]]) -> tuple[float, float]:
    """The 95 % interval of the mean of all values, where groups are drawn with replacement (percentiles)."""
    sums = np.array([sum(group) for group in groups])
    sizes = np.array([len(group) for group in groups])
    drawn = np.random.default_rng(0).integers(len(groups), size=(RESAMPLES, len(groups)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
