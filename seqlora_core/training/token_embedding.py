"""The word of a concept: vectors in the place of its token, learned before its factors.

Textual inversion (Gal et al., ICLR 2023) with several vectors, started as in Mix-of-Show (Gu et al., NeurIPS 2023): the
last one from the class word, the others at random.  The word is learned on the base model alone, so that it depends
neither on the bank nor on the order of its concepts, and is frozen while the factors are trained.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..bank import ConceptSpec
from ..data.dataset import EncodedConcept
from ..data.words import Words, named_words
from ..errors import TrainingDiverged, UserError
from ..model.denoiser import Denoiser
from ..model.text_encoder import TextEncoder, Vocabulary
from ..randomness import named_generator
from .config import ResolvedConfig
from .distributed import ALONE, Processes
from .factor_optimizer import FactorOptimizer
from .minibatches import WORD_PHASE, draw_minibatches
from .objective import DenoisingObjective

# How much longer than the vocabulary's longest vectors a learned one may be.  Of CLIP ViT-L's, whose longest is about
# 0.46, this makes Mix-of-Show's bound of 0.55.
NORM_SLACK = 1.2


@dataclass
class WordState:
    """What the steps of a word change.

    Attributes:
        optimizer: holds the vectors [k, w], float32, on the training device.
        step: finished steps.
        losses: one per finished step.
        seconds: spent in steps, over all sessions of the run.
    """

    optimizer: FactorOptimizer
    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def begin(cls, vectors: Tensor, step_size: float, device: torch.device) -> "WordState":
        """The state before the first step."""
        return cls(FactorOptimizer([vectors.to(device).contiguous()], "adam", step_size, 0.0))

    @property
    def vectors(self) -> Tensor:
        """[k, w], not to be changed."""
        return self.optimizer.parameters[0].detach()

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors by name, for a checkpoint."""
        optimizer = {f"word.{name}": value for name, value in self.optimizer.state_tensors().items()}
        return {"word.vectors": self.vectors, **optimizer}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what `state_dict` returned."""
        own = {name.removeprefix("word."): value for name, value in tensors.items() if name.startswith("word.")}
        self.optimizer.parameters[0].data.copy_(own.pop("vectors"))
        self.optimizer.load_state_tensors(own)

    def copy(self) -> dict[str, Tensor]:
        """A copy of the tensors, for `restore`."""
        return {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}


def first_vectors(encoder: TextEncoder, vocabulary: Vocabulary, spec: ConceptSpec, config: ResolvedConfig) -> Tensor:
    """The vectors [k, w] that a word starts from: random ones, and at the end that of the class word (their mean, if
    the class word has several)."""
    count, generator = config.token_vectors, named_generator(config.seed, "word", spec.name)
    random = vocabulary.spread * torch.randn(count - 1, vocabulary.width, generator=generator)
    own = encoder.vectors_of(spec.class_word)
    if not len(own):
        raise UserError(f"The text encoder does not know the class word {spec.class_word!r}: give another one.")
    return torch.cat([random, own.mean(0, keepdim=True)])


def check_names_word(texts: Iterable[str], token: str) -> None:
    """Raises UserError where none of the concept's prompts names the word that is to be learned."""
    if not named_words(texts, [token]):
        raise UserError(
            f"No caption contains the token {token!r}, so its word cannot be learned: put it into the captions, or set "
            "token_vectors to 0."
        )


class WordTraining:
    """The steps of one concept's word.

    Args:
        words: the bank's, which prompts may name besides the concept's own.
        start: the vectors [k, w] to start from, instead of `first_vectors`.
        processes: those that share every batch.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        encoder: TextEncoder,
        data: EncodedConcept,
        spec: ConceptSpec,
        config: ResolvedConfig,
        words: Words,
        start: Tensor | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.denoiser, self.encoder, self.config, self.token = denoiser, encoder, config, spec.token
        self._data = data
        self._drawn = dataclasses.replace(data, prior=())  # their prompts do not name the word
        self.words = {token: vectors for token, vectors in words.items() if token.casefold() != spec.token.casefold()}
        self.objective = DenoisingObjective(denoiser, {}, config.dtype, processes=processes)
        vocabulary = encoder.vocabulary()
        self._longest = NORM_SLACK * vocabulary.longest
        first = first_vectors(encoder, vocabulary, spec, config) if start is None else start.clone()
        self.state = WordState.begin(first, config.lr_token * vocabulary.spread, denoiser.device)

    def encode(self, prompts: Sequence[str], vectors: Tensor) -> Tensor:
        """Encode prompts with these vectors as the word: [N, tokens, d] on the training device."""
        return self.encoder.encode(prompts, {**self.words, self.token: vectors}).to(self.denoiser.device)

    @torch.no_grad()
    def encoded(self) -> EncodedConcept:
        """The concept's data, its prompts encoded with the word as it is now."""
        vectors = self.state.vectors
        with self.encoder.loaded():
            return self._data.with_prompts(
                lambda texts: torch.cat([self.encode([text], vectors).cpu() for text in texts])
            )

    def step(self) -> None:
        """One step of the vectors.

        Raises:
            TrainingDiverged: the loss or a vector is not finite.
        """
        state, config = self.state, self.config
        self.objective.use(draw_minibatches(self._drawn, self.denoiser, config, state.step, WORD_PHASE))
        loss, gradient = self.objective.word_gradient(state.vectors, self.encode, moved=state.step > 0)
        state.optimizer.step([gradient])
        vectors = state.optimizer.parameters[0].data
        vectors.copy_(torch.renorm(vectors, 2, 0, self._longest))
        value, finite = self.objective.read(loss, [vectors], moved=state.step > 0, step_sizes="lr_token")
        state.losses.append(value)
        state.step += 1
        if not finite:
            raise TrainingDiverged(f"The word is no longer finite after step {state.step}: lower lr_token.")
