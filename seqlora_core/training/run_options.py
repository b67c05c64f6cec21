"""How a training run is carried out, as opposed to what it computes."""

from collections.abc import Container
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from .distributed import ALONE, Processes

CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class RunOptions:
    """How a training run is carried out, as opposed to what it computes.

    Attributes:
        resume: continue from the concept's checkpoint if there is one.
        restart_if_changed: with `resume`, start again if the checkpoint is of other settings or data, instead of
            refusing.
        replace: an existing concept of that name is removed once the new one is trained.
        checkpoint_seconds: seconds between checkpoints.
        thumbnail: stored with the concept.
        preview_every: steps between previews for the monitor, from step 0 on; 0 makes none.
        preview_prompt: what previews show; if empty, the first prompt of the first image.  It needs the text encoder.
        preview_seed: of the previews' noise; None is the training run's seed.
        vocabulary: entries of the base's tokenizer, by which a token that is an ordinary word is recognized.
        store_anyway: store the concept even if the loss ended far above where it began.
        first_word: vectors [k, w] that the word starts from, of a textual inversion for example; with
            `config.token_share` 0 it stays as it is.
        processes: those that train the concept together, each on its share of every batch; `config.batch_size` is that
            of the whole batch.
    """

    resume: bool = False
    restart_if_changed: bool = False
    replace: bool = False
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    thumbnail: Image.Image | None = None
    preview_every: int = 0
    preview_prompt: str = ""
    preview_seed: int | None = None
    vocabulary: Container[str] = ()
    store_anyway: bool = False
    first_word: Tensor | None = None
    processes: Processes = ALONE

    def preview_is_due(self, step: int) -> bool:
        """Whether a preview is made after so many steps."""
        return bool(self.preview_every) and step % self.preview_every == 0
