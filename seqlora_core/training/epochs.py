"""Which examples a micro-batch shows: a pure function of the seed and its number."""

from collections.abc import Sequence
from functools import lru_cache

import torch

from ..data.dataset import Example
from ..randomness import named_generator
from .config import ResolvedConfig


def pick_examples(examples: Sequence[Example], config: ResolvedConfig, number: int) -> list[Example]:
    """The examples of a micro-batch.

    Every epoch shows each example once, in an order of its own.  With buckets, a micro-batch has examples of one size,
    and the last one of a size in an epoch may have fewer than the others.

    Args:
        number: of the micro-batch, from 0, in the whole run.
    """
    if config.buckets:
        sizes = tuple(tuple(example.mean.shape[1:]) for example in examples)
        chosen = _bucketed(sizes, config.batch_size, config.seed, number)
    else:
        first = number * config.batch_size
        chosen = [
            _shuffled(position, len(examples), config.seed) for position in range(first, first + config.batch_size)
        ]
    return [examples[index] for index in chosen]


def _shuffled(position: int, count: int, seed: int) -> int:
    """Return the index of the example at `position` of an endless sequence, which is reshuffled in every epoch."""
    epoch, offset = divmod(position, count)
    return int(torch.randperm(count, generator=named_generator(seed, "epoch", epoch))[offset])


def _bucketed(sizes: tuple[tuple[int, int], ...], batch_size: int, seed: int, number: int) -> list[int]:
    """The indices of the examples in a micro-batch; every epoch shuffles within the buckets, then the batches."""
    per_epoch = sum(-(-sizes.count(size) // batch_size) for size in set(sizes))
    epoch, offset = divmod(number, per_epoch)
    return list(_epoch(sizes, batch_size, seed, epoch)[offset])


@lru_cache(maxsize=2)
def _epoch(sizes: tuple[tuple[int, int], ...], batch_size: int, seed: int, epoch: int) -> tuple[tuple[int, ...], ...]:
    generator = named_generator(seed, "epoch", epoch)
    order = torch.randperm(len(sizes), generator=generator).tolist()
    batches = []
    for size in sorted(set(sizes)):
        own = [index for index in order if sizes[index] == size]
        batches += [tuple(own[start : start + batch_size]) for start in range(0, len(own), batch_size)]
    return tuple(batches[place] for place in torch.randperm(len(batches), generator=generator).tolist())
