"""SeqLoRA Train Concept."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ..seqlora_core.bank import Bank, Concept, ConceptSpec
from ..seqlora_core.data.captions import caption_prompts, describe_missing_token
from ..seqlora_core.data.dataset import EncodedConcept
from ..seqlora_core.data.hold_out import check_hold_out, split_held_out
from ..seqlora_core.data.listing import counted
from ..seqlora_core.data.prompts import describe_cut_prompts, prefixed
from ..seqlora_core.data.reference_folder import NO_ALPHA
from ..seqlora_core.data.words import Words, named_words
from ..seqlora_core.errors import UserError
from ..seqlora_core.hashing import images_fingerprint
from ..seqlora_core.model.sd15 import SD15
from ..seqlora_core.plots import loss_curve
from ..seqlora_core.training.config import WITHOUT_WORD, ResolvedConfig
from ..seqlora_core.training.methods import resolve
from ..seqlora_core.training.plan import (
    already_trained,
    describe_full_layers,
    full_layers,
    next_version,
    trained_subject,
)
from .bank import BankType
from .cache_keys import values_fingerprint
from .host import CLIP, VAE, ModelPatcher, console, encoders, folders, interface, runs
from .host import model as host_model
from .host.prompt import model_file, origin_class
from .host.text_encoder import HostTextEncoder
from .host.texts import check_texts, count_tokens
from .host.words import knowing_words, known_words
from .image_tensors import to_alphas, to_image, to_pillow
from .train_inputs import TrainInputs, train_inputs

_NO_WORD = (
    "was already in the bank; nothing was trained. It is of an earlier version and has no learned word: prompts call "
    "it by its token and class word. To learn one, set on_existing to 'replace'"
)


class TrainConcept(io.ComfyNode):
    """Learns a concept on the UNet of the connected MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return interface.schema(
            node_id="SeqLoRATrainConcept",
            display_name="SeqLoRA Train Concept",
            search_aliases=["train lora", "learn concept", "dreambooth", "orthogonal lora"],
            description="Learns one subject from images, orthogonal to all concepts already in the bank.",
            is_input_list=True,
            is_output_node=True,
            inputs=train_inputs(),
            outputs=[
                BankType.Output("bank_out", display_name="bank", tooltip="The bank with the new concept."),
                io.String.Output(
                    "concept", display_name="concept", tooltip="The concept's name, for Compose Concepts."
                ),
                io.Model.Output("model_out", display_name="model", tooltip="The model with this concept only."),
                io.LossMap.Output("losses", display_name="losses", tooltip="The loss per step, for Plot Loss Graph."),
                io.Image.Output("plot", display_name="plot", tooltip="A plot of the loss over the training steps."),
                io.Clip.Output(
                    "clip_out", display_name="clip", tooltip="The CLIP that knows the concept's word, for prompts."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **lists) -> str:
        """Changes with the bank, so that the node runs again after its concept was removed or replaced."""
        if "bank" in lists:
            return ""  # the host asks the node that provides it
        return folders.bank_cache_key(lists["bank_name"][0])

    @classmethod
    def execute(
        cls,
        model: list[ModelPatcher],
        clip: list[CLIP],
        vae: list[VAE],
        images: Sequence[Tensor] = (),
        masks: Sequence[Tensor] = (),
        **lists,
    ) -> io.NodeOutput:
        # Another node may put an empty list on an input, or None.
        model, clip, vae = (own[0] if own else None for own in (model, clip, vae))
        batches = [batch for batch in images if batch is not None]
        masks = [mask for batch in masks if batch is not None for mask in batch]
        inputs = TrainInputs.from_lists(lists)
        host_model.check_model(model)
        host_model.check_no_concepts_attached(model)
        encoders.check_encoders(clip, vae)
        _check_masks(cls)
        monitor = interface.NodeMonitor(cls.hidden.unique_id, model, runs.start(cls, inputs.concept_name))
        with host_model.outside_inference_mode(), monitor.watching():
            monitor.stage("checking the images and models")  # the node still shows the result of the run before
            bank, concept, outcome = _train(cls, model, clip, vae, batches, masks, inputs, monitor)
            knowing = knowing_words(clip, bank.words([concept]))
            notes = [*_describe_data(inputs, sum(map(len, batches)), knowing), *monitor.messages]
            return _outputs(cls, model, knowing, bank, concept, outcome, notes)


def _check_masks(node: type[TrainConcept]) -> None:
    """Raises UserError for masks that are 1 on the background, as Load Image Folder's are."""
    if origin_class(node, "masks") == "SeqLoRALoadImageFolder":
        raise UserError(
            "The masks of Load Image Folder are 1 where an image is transparent, so only the background would count: "
            "put Invert Mask between its output masks and the input masks."
        )


def _train(
    node: type[TrainConcept],
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    batches: list[Tensor],
    masks: list[Tensor],
    inputs: TrainInputs,
    monitor: interface.NodeMonitor,
) -> tuple[Bank, Concept, str]:
    """The bank, the concept in it, and what happened to it: it was learned, or found unchanged."""
    requested, spec = inputs.config(), inputs.spec()
    images = to_pillow(batches)
    if not images:
        raise UserError("There is no image on the input images: connect at least one image of the subject.")
    keys = [images_fingerprint([image]) for image in images]
    distinct = len(set(keys))  # a folder with repeats has copies
    check_hold_out(distinct, requested.hold_out)
    config = resolve(requested, SD15.native_size, host_model.training_dtype(model), distinct)
    prompts = caption_prompts(inputs.captions, trained_subject(spec, config), len(images), config.caption_prefix)
    latent_masks = _latent_masks(batches, masks, images, config, monitor)
    bank = Bank.open_or_create(inputs.bank_folder(), *host_model.identify(model, model_file(node)))
    changes = [encoders.identify_encoders(clip, vae), host_model.other_patches(model, clip)]

    def fingerprint_of(prompts: list[tuple[str, ...]]) -> str:
        named = _words_in(clip, prompts, spec.token)
        return values_fingerprint([batches, masks, prompts, changes, *named])

    source = fingerprint_of(prompts)
    if (rare := _of_rare_word(bank, spec, config, inputs, fingerprint_of, len(images))) is not None:
        return bank, rare, _NO_WORD
    if inputs.on_existing == "new version":
        spec = next_version(bank, spec, config, source)
    done = already_trained(bank, spec, config, source)
    if done is not None and bool(done.embedding) == config.learns_word:
        return bank, done, "was already in the bank, unchanged; nothing was trained"
    if inputs.on_existing == "error":
        bank.require_free(
            spec.name,
            "it was trained with other settings, images or LoRAs on the model, or with another CLIP or VAE. Choose "
            "another concept_name, or set on_existing to 'replace' or 'new version'",
        )
    check_texts(clip, prompts[0][0])
    denoiser, text_encoder = host_model.HostDenoiser(model), HostTextEncoder(clip, model)
    from ..seqlora_core.training.trainer import train_concept  # only now: ComfyUI starts sooner

    with ExitStack() as in_memory:

        def encode(protected: Sequence[str], words: Words) -> EncodedConcept:
            """Encode images and prompts, then load the UNet: loaded earlier, the VAE and CLIP would push it out."""
            pair = encoders.Encoders(model, clip, vae, words)
            others = [*protected, *([""] if config.caption_dropout else [])]
            examples, embeddings = pair.encode(images, latent_masks, prompts, others, config, monitor)
            monitor.stage("loading the model")
            in_memory.enter_context(denoiser.loaded())
            trained, held_out = split_held_out(examples, config.hold_out, config.seed, keys)
            empty = embeddings[-1] if config.caption_dropout else None
            kept = embeddings[: len(protected)] if protected else None
            return EncodedConcept(trained, protected=kept, source=source, held_out=held_out, empty=empty)

        options = inputs.options(thumbnail=images[0])
        concept = train_concept(denoiser, encode, bank, spec, config, monitor, options, requested, text_encoder)
    return bank, concept, "learned"


def _latent_masks(
    batches: list[Tensor],
    masks: list[Tensor],
    images: list[Image.Image],
    config: ResolvedConfig,
    monitor: interface.NodeMonitor,
) -> list[Tensor | None]:
    """The mask of every image, from the input masks and from alpha channels."""
    alphas = to_alphas(batches) if config.alpha_masks else [None] * len(images)
    if config.alpha_masks and not any(alphas):
        monitor.message(f"{NO_ALPHA} Load Image Folder has those of its images on its output masks.")
    return encoders.latent_masks(masks, alphas, images, encoders.frame_of(config))


def _words_in(clip: CLIP, prompts: list[tuple[str, ...]], token: str) -> list[object]:
    """The learned words of CLIP that prompts name, and their vectors; the concept's own is learned anew."""
    words = known_words(clip)
    named = named_words((prompt for own in prompts for prompt in own), list(words))
    return [[word, words[word]] for word in named if word.casefold() != token.casefold()]


def _of_rare_word(
    bank: Bank,
    spec: ConceptSpec,
    config: ResolvedConfig,
    inputs: TrainInputs,
    fingerprint_of: Callable[[list[tuple[str, ...]]], str],
    images: int,
) -> Concept | None:
    """The concept of a version that learned no words, if nothing but that is different; one that is replaced is not."""
    if not config.learns_word or inputs.on_existing == "replace":
        return None
    without = replace(config, **WITHOUT_WORD)
    subject = trained_subject(spec, without)
    source = fingerprint_of(caption_prompts(inputs.captions, subject, images, without.caption_prefix))
    found = already_trained(bank, spec, without, source)
    return found if found is not None and "token_vectors" not in found.settings else None


def _describe_data(inputs: TrainInputs, images: int, clip: CLIP) -> list[str]:
    """Sentences about what is trained on, and what of the captions is lost."""
    lines = [line.strip() for line in inputs.captions.splitlines() if line.strip()]
    captions = prefixed(inputs.config().caption_prefix, lines)
    return [
        *([changed] if (changed := inputs.from_settings()) else []),
        f"{counted(images, 'image')}, {counted(len(captions), 'caption')}.",
        *describe_missing_token(captions, inputs.token.strip()),
        *describe_cut_prompts(captions, lambda caption: count_tokens(clip, caption), SD15.prompt_tokens),
    ]


def _outputs(
    node: type[TrainConcept],
    model: ModelPatcher,
    clip: CLIP,
    bank: Bank,
    concept: Concept,
    outcome: str,
    notes: list[str],
) -> io.NodeOutput:
    curve = concept.metrics["loss_curve"]
    patched = host_model.apply_adapters(model, bank.load([concept])[concept.name], [concept])
    plot = to_image(loss_curve(curve, f"{concept.name}: loss", concept.metrics.get("held_out_curve", ())))
    losses = {"loss": [torch.tensor(loss) for loss in curve]}
    final = f"Final loss {concept.metrics['final_loss']:.4f}"
    if (held_out := concept.metrics.get("held_out_loss")) is not None:
        final += f", of the held-out images {held_out:.4f}"
    lines = [f"{concept.name} {outcome}. {final}. File: {bank.folder / concept.file}"]
    console.say(lines[0])
    if full := full_layers(bank, concept):
        notes = [*notes, describe_full_layers(full, concept.rank)]
    lines += dict.fromkeys(notes)
    if off := host_model.patches_off_in_training(model):
        lines.append(f"Off while training, because they change the model while sampling only: {', '.join(off)}.")
    shown = interface.node_text(node, "\n".join(lines))
    return io.NodeOutput(bank, concept.name, patched, losses, plot, clip, ui=shown)
