"""Settings of common wishes: captions, images, loss and learning rates.  All are off by default."""

from dataclasses import dataclass

from ..errors import UserError
from .setting import setting

LEAST_GAMMA = 0.01  # in most steps the signal-to-noise ratio is larger


@dataclass(frozen=True)
class ExtraSettings:
    """The part of `TrainingConfig` without which a run is the published one."""

    caption_prefix: str = setting("", "text to put before the captions of the concept's images, and a space")
    caption_dropout: float = setting(
        0.0,
        "share of the images of the LoRA's steps that are shown with the empty prompt; steps of the word keep theirs",
        least=0,
        most=0.9,
    )
    min_snr_gamma: float = setting(
        0.0, "bound on the signal-to-noise ratio in the loss's weights (min-SNR), such as 5, or 0 for none", least=0
    )
    noise_offset: float = setting(
        0.0,
        "size of a random constant per channel in the noise, such as 0.05, for darker and brighter images",
        least=0,
        most=1,
    )
    lr_schedule: str = setting(
        "constant", "course of the LoRA's learning rates: constant, or falling to 0 (cosine)", ("constant", "cosine")
    )
    lr_warmup: float = setting(
        0.0, "share of the LoRA's steps over which its learning rates rise from 0", least=0, most=0.9
    )
    alpha_masks: bool = setting(False, "weight the loss of each pixel by the alpha channel of its image")
    buckets: bool = setting(False, "train on images of about their own ratio, with as many pixels, instead of squares")
    hold_out: int = setting(
        0, "images, chosen by the seed, that are not trained on and whose loss is reported instead", least=0
    )

    def check_extras(self, acts_on_own_words: bool, crop: str) -> None:
        """Raises UserError where settings exclude each other, or would keep a run from learning."""
        if 0 < self.min_snr_gamma < LEAST_GAMMA:
            raise UserError(
                f"min_snr_gamma {self.min_snr_gamma:g} would give almost every image a weight of about 0: give 1 to "
                "20, such as 5, or 0 for no weights."
            )
        if self.buckets and crop != "center":
            raise UserError("With buckets no square is cut out of an image, so crop must be center: leave crop out.")
        if acts_on_own_words and self.caption_dropout:
            raise UserError(
                "With acts_on own-words a concept does not act on an image without its word, so caption_dropout must "
                "be 0: leave it out, or set acts_on to everything."
            )
