"""One concept to train, as the command line or an entry of a list asks for it."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..bank import Bank, Concept, ConceptSpec
from ..data.encoding import check_alphas, cut_prompts, encode_concept
from ..data.hold_out import check_hold_out
from ..data.reference_folder import ReferenceFolder, read_folder
from ..model.base import Base
from ..training.checkpoint import is_of_rare_word
from ..training.config import ResolvedConfig, TrainingConfig
from ..training.methods import resolve
from ..training.plan import trained_subject
from ..training.trainer import RunOptions, train_concept
from .options import concept_spec
from .settings import requested_config
from .terminal import TerminalMonitor


@dataclass(frozen=True)
class Request:
    """What to train on which folders.

    Attributes:
        images: folder of reference images.
        prior_images: folder of other images of the class, or None.
    """

    spec: ConceptSpec
    config: TrainingConfig
    images: str
    prior_images: str | None = None

    @classmethod
    def parse(cls, args: argparse.Namespace) -> "Request":
        """Make it from the values of `train`'s options.

        Raises:
            UserError: one of them cannot be used.
        """
        spec = concept_spec(args.name, args.token, args.class_word)
        return cls(spec, requested_config(vars(args)), args.images, args.prior_images)

    def shared_by(self, count: int) -> "Request":
        """The request of so many processes, each of which has as many images per forward pass as were asked for."""
        return replace(self, config=replace(self.config, batch_size=count * self.config.batch_size))

    def continuing(self, bank: str) -> "Request":
        """The request that an unfinished run in the bank can go on with: one of before learned words has none."""
        if self.config.token_vectors is None and Bank.exists(bank):
            path = Bank.open(bank).checkpoint_path(self.spec.name)
            if is_of_rare_word(path):
                return replace(self, config=replace(self.config, token_vectors=0))
        return self

    def read(self) -> tuple[ReferenceFolder, ReferenceFolder]:
        """Read the reference images and those of the class.

        Raises:
            UserError: a folder or file cannot be read (see `read_folder`), or no image would be left to train on.
        """
        references = read_folder(
            self.images,
            trained_subject(self.spec, self.config),
            token=self.spec.token,
            prefix=self.config.caption_prefix,
            alpha=self.config.alpha_masks,
        )
        if self.config.hold_out:  # fingerprints take a while
            check_hold_out(len({own.fingerprint for own in references}), self.config.hold_out)
        prior = read_folder(self.prior_images, self.spec.class_word) if self.prior_images else ReferenceFolder(())
        return references, prior

    def resolve(self, base: Base, dtype: str, references: ReferenceFolder) -> ResolvedConfig:
        """Decide what the request leaves open, by the base and by the images that `read` returned.

        Raises:
            UserError: the base cannot draw images of that size, or nothing of an image would count.
        """
        config = resolve(self.config, base.native_size, dtype, len(references))
        base.check_resolution(config.resolution)
        check_alphas(base, references, config.resolution, config.crop, config.buckets)
        return config

    def train(
        self,
        base: Base,
        dtype: str,
        bank: Bank,
        folders: Sequence[ReferenceFolder],
        monitor: TerminalMonitor,
        options: RunOptions,
    ) -> Concept:
        """Train the concept on what `read` returned, and add it to the bank (see `train_concept`)."""
        references, prior = folders
        config = self.resolve(base, dtype, references)
        for note in (*references.notes, *prior.notes, *cut_prompts(base, [*references, *prior])):
            monitor.message(note)
        monitor.message(f"{references.summary}; {config}")
        vocabulary = base.pipeline.tokenizer.get_vocab()
        with monitor.watching():
            return train_concept(
                base.denoiser(),
                lambda prompts, words: encode_concept(
                    base,
                    references,
                    config.resolution,
                    prior,
                    prompts,
                    crop=config.crop,
                    buckets=config.buckets,
                    flip=config.flip,
                    words=words,
                    hold_out=config.hold_out,
                    seed=config.seed,
                    empty=config.caption_dropout > 0,
                    monitor=monitor,
                ),
                bank,
                self.spec,
                config,
                monitor,
                replace(options, thumbnail=references[0].image, vocabulary=vocabulary),
                self.config,
                base.text_encoder,
            )


def describe_learned(bank: Bank, concept: Concept) -> str:
    """What the command says at the end of a training run."""
    metrics, held_out = concept.metrics, ""
    if curve := metrics.get("held_out_curve"):
        held_out = f", of the held-out images {curve[0]:.4f} -> {curve[-1]:.4f}"
    return (
        f"Learned {concept.name!r} as '{concept.subject}' in {metrics['seconds']:.0f} s: loss "
        f"{metrics['first_loss']:.4f} -> {metrics['final_loss']:.4f}{held_out}. It is in {bank.folder / concept.file}."
    )
