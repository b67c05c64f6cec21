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
        _, batches, offset = _bucketed(examples, config, number)
        chosen = batches[offset]
    else:
        first = number * config.batch_size
        chosen = [
            _shuffled(position, len(examples), config.seed) for position in range(first, first + config.batch_size)
        ]
    return [examples[index] for index in chosen]


def images_before(examples: Sequence[Example], config: ResolvedConfig, number: int) -> int:
    """How many images the micro-batches before this one have shown; in buckets, some have fewer than others."""
    if not config.buckets:
        return number * config.batch_size
    epoch, batches, offset = _bucketed(examples, config, number)
    return epoch * len(examples) + sum(map(len, batches[:offset]))


def _shuffled(position: int, count: int, seed: int) -> int:
    """Return the index of the example at `position` of an endless sequence, which is reshuffled in every epoch."""
    epoch, offset = divmod(position, count)
    return int(torch.randperm(count, generator=named_generator(seed, "epoch", epoch))[offset])


def _bucketed(
    examples: Sequence[Example], config: ResolvedConfig, number: int
) -> tuple[int, tuple[tuple[int, ...], ...], int]:
    """The epoch that a micro-batch is in, the indices of the examples in all of that epoch's, and its place there."""
    sizes = tuple(tuple(example.mean.shape[1:]) for example in examples)
    per_epoch = sum(-(-sizes.count(size) // config.batch_size) for size in set(sizes))
    epoch, offset = divmod(number, per_epoch)
    return epoch, _epoch(sizes, config.batch_size, config.seed, epoch), offset


@lru_cache(maxsize=2)
def _epoch(sizes: tuple[tuple[int, int], ...], batch_size: int, seed: int, epoch: int) -> tuple[tuple[int, ...], ...]:
    """The indices of the examples in each micro-batch; every epoch shuffles within the buckets, then the batches."""
    generator = named_generator(seed, "epoch", epoch)
    order = torch.randperm(len(sizes), generator=generator).tolist()
    batches = []
    for size in sorted(set(sizes)):
        own = [index for index in order if sizes[index] == size]
        batches += [tuple(own[start : start + batch_size]) for start in range(0, len(own), batch_size)]
    return tuple(batches[place] for place in torch.randperm(len(batches), generator=generator).tolist())
