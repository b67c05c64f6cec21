"""SeqLoRA Train Concept."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields

import torch
from comfy_api.latest import io

from ..seqlora_core.bank import Bank, Concept
from ..seqlora_core.bank.spec import ConceptSpec
from ..seqlora_core.data.dataset import EncodedConcept
from ..seqlora_core.data.prompts import caption_prompts
from ..seqlora_core.errors import UserError
from ..seqlora_core.plots import loss_curve
from ..seqlora_core.training.config import TrainingConfig, current_names
from ..seqlora_core.training.methods import resolve
from ..seqlora_core.training.plan import already_trained, describe_full_layers, full_layers, next_version
from ..seqlora_core.training.trainer import RunOptions, train_concept
from . import host
from .bank import BankType
from .graph import fingerprint, model_file
from .pictures import LARGEST_RESOLUTION, to_image, to_pictures


class TrainConcept(io.ComfyNode):
    """Learns a concept on the UNet that the graph already holds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="SeqLoRATrainConcept",
            display_name="SeqLoRA Train Concept",
            search_aliases=["train lora", "learn concept", "dreambooth", "orthogonal lora"],
            description="Learns one subject from pictures, orthogonal to all concepts that the bank already holds.",
            is_input_list=True,
            is_output_node=True,
            inputs=[*_graph_inputs(), *_concept_inputs(), *_optional_inputs(), *_advanced_inputs()],
            outputs=[
                BankType.Output("bank_out", display_name="bank", tooltip="The bank with the concept."),
                io.String.Output(
                    "concept", display_name="concept", tooltip="The concept's name, for Compose Concepts."
                ),
                io.Model.Output("model_out", display_name="model", tooltip="The model with this concept alone."),
                io.LossMap.Output("losses", display_name="losses", tooltip="For Plot Loss Graph."),
                io.Image.Output("plot", display_name="plot", tooltip="The loss over the training."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **lists) -> str:
        """Changes with the bank, so that a concept that was removed or replaced meanwhile is looked at again."""
        if "bank" in lists:
            return ""  # the host asks the node that it comes from
        return host.bank_cache_key(lists["bank_name"][0])

    @classmethod
    def execute(cls, model, clip, vae, images, **lists) -> io.NodeOutput:
        values = {name: value[0] for name, value in lists.items() if value}
        if len(captions := lists.get("captions") or []) > 1:  # a node that writes one for each picture of a list
            values["captions"] = "\n".join(" ".join(caption.split()) for caption in captions)
        model, masks = model[0], [mask for batch in lists.get("masks") or [] for mask in batch]
        host.check_model(model)
        host.check_no_concepts_attached(model)
        host.check_encoders(clip[0], vae[0])
        with host.outside_inference_mode():
            bank, concept, news = _train(cls, model, clip[0], vae[0], images, masks, values)
            return _outputs(cls, model, bank, concept, news)


_DEFAULTS = TrainingConfig()
_PREVIEW_EVERY = 100


def _choices(setting: str) -> list[str]:
    return next(list(entry.metadata["choices"]) for entry in fields(TrainingConfig) if entry.name == setting)


def _graph_inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="Stable Diffusion 1.5. It is not changed; LoRAs on it are trained with."),
        io.Clip.Input("clip", tooltip="Turns the captions into embeddings."),
        io.Vae.Input("vae", tooltip="Turns the pictures into latents."),
        io.Image.Input("images", tooltip="4 to 20 pictures of the subject; batches of different sizes are fine."),
    ]


def _concept_inputs() -> list[io.Input]:
    return [
        io.String.Input("bank_name", default="my bank", tooltip="A bank in models/seqlora; made where there is none."),
        io.String.Input("concept_name", default="", tooltip="The concept's name in the bank."),
        io.String.Input(
            "token", default="", tooltip="A rare word that will mean the subject in prompts, such as sksdog."
        ),
        io.String.Input("class_word", default="", tooltip="What the subject is, such as dog."),
        io.Int.Input("rank", default=_DEFAULTS.rank, min=1, max=128, tooltip="Directions it takes in every layer."),
        io.Int.Input("steps", default=_DEFAULTS.steps, min=1, max=100000, tooltip="Minibatches to train on."),
        io.Int.Input(
            "resolution",
            default=512,
            min=64,
            max=LARGEST_RESOLUTION,
            step=64,
            tooltip="Side of the square training crops, in pixels.",
        ),
        io.Combo.Input(
            "method", options=_choices("method"), default="seqlora", tooltip="seqlora is the paper's method."
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**53,
            control_after_generate=False,  # a seed that changes by itself would ask for another concept at the next run
            tooltip="Of everything random in the training.",
        ),
        io.Combo.Input(
            "on_existing",
            options=["error", "replace", "new version"],
            default="error",
            tooltip="What happens if the name exists with other settings or pictures. Unchanged, nothing is trained.",
        ),
    ]


def _optional_inputs() -> list[io.Input]:
    return [
        BankType.Input("bank", optional=True, tooltip="A bank to train into, instead of the one named in bank_name."),
        io.String.Input(
            "captions",
            optional=True,
            multiline=True,
            default="",
            tooltip="One line for each picture, with the token in it, or one for all; empty uses neutral templates.",
        ),
        io.Mask.Input("masks", optional=True, tooltip="One for each picture: the loss only counts inside it."),
    ]


def _advanced_inputs() -> list[io.Input]:
    step_size = {"min": 0.0, "max": 100.0, "step": 0.0001, "round": False, "optional": True}
    return [
        host.advanced(
            io.Combo.Input,
            "layers",
            options=_choices("layers"),
            default=_DEFAULTS.layers,
            optional=True,
            tooltip="Attention layers to adapt: the keys and values of the text, all that read it, or all.",
        ),
        host.advanced(
            io.Combo.Input,
            "optimizer",
            options=_choices("optimizer"),
            default=_DEFAULTS.optimizer,
            optional=True,
            tooltip="Projected Adam, or the paper's plain gradient steps.",
        ),
        host.advanced(
            io.Combo.Input,
            "hypergradient",
            options=_choices("hypergradient"),
            default=_DEFAULTS.hypergradient,
            optional=True,
            tooltip="How the coupling of the two factors is differentiated; lookahead is the fast one.",
        ),
        host.advanced(
            io.Float.Input,
            "alpha",
            default=_DEFAULTS.lr_coefficients,
            tooltip="Step size of the coefficients A.",
            **step_size,
        ),
        host.advanced(
            io.Float.Input, "beta", default=_DEFAULTS.lr_basis, tooltip="Step size of the basis B.", **step_size
        ),
        host.advanced(
            io.Int.Input, "batch_size", default=1, min=1, max=64, optional=True, tooltip="Pictures in one pass."
        ),
        host.advanced(
            io.Boolean.Input,
            "gradient_checkpointing",
            default=False,
            optional=True,
            tooltip="Less memory, about a third more time.",
        ),
        host.advanced(
            io.Int.Input,
            "preview_every",
            default=_PREVIEW_EVERY,
            min=0,
            max=100000,
            optional=True,
            tooltip="Steps between two preview pictures of what the concept looks like so far; 0 shows none.",
        ),
        host.advanced(
            io.Combo.Input,
            "train_on",
            options=["auto", *_choices("train_on"), "subsets"],  # the last is the old name of alternate
            default="auto",
            optional=True,
            tooltip="Earlier concepts in the model while training: all and none in turn (subsets, auto for seqlora), "
            "always all (accumulated: better where all are composed, weaker alone), or always none (bare).",
        ),
    ]


_SETTINGS = (
    *("rank", "steps", "resolution", "method", "seed", "layers", "optimizer", "hypergradient", "alpha", "beta"),
    *("batch_size", "gradient_checkpointing", "train_on"),
)


def _train(node: type[TrainConcept], model, clip, vae, images, masks, values: dict) -> tuple[Bank, Concept, str]:
    requested = TrainingConfig(**current_names({name: values[name] for name in _SETTINGS if name in values}))
    config = resolve(requested, 512, host.training_dtype(model))
    spec = ConceptSpec(values["concept_name"], values["token"], values["class_word"])
    pictures = to_pictures(images)
    if not pictures:
        raise UserError("There is no picture on the input images: connect at least one.")
    prompts = caption_prompts(values.get("captions", ""), spec.subject, len(pictures))
    latent_masks = host.latent_masks(masks, pictures, config.resolution)
    folder = values["bank"].folder if values.get("bank") is not None else host.bank_folder(values["bank_name"])
    bank = Bank.open_or_create(folder, *host.identify(model, model_file(node)))
    encoders = [host.identify_encoders(clip, vae), host.other_patches(model, clip)]
    source = fingerprint([images, masks, prompts, encoders])
    if values["on_existing"] == "new version":
        spec = next_version(bank, spec, config, source)
    if (done := already_trained(bank, spec, config, source)) is not None:
        return bank, done, "was already in the bank, unchanged; nothing was trained"
    if values["on_existing"] == "error" and (taken := bank.manifest.find(spec.name)):
        raise UserError(
            f"The bank already has a concept {taken.name!r}, from other settings, pictures or LoRAs on the model, or "
            "another CLIP or VAE: choose another concept_name, or on_existing 'replace' or 'new version'."
        )
    host.check_texts(clip, prompts[0][0])
    denoiser = host.HostDenoiser(model)
    with ExitStack() as in_memory:

        def encode(prompts: Sequence[str]) -> EncodedConcept:
            """Comes after the checks of the plan.  The UNet is loaded last, or the VAE and CLIP would push it out."""
            with host.seeded_rng(config.seed):
                examples = host.encode(model, clip, vae, pictures, latent_masks, prompts, config.resolution)
                protected = host.encode_prompts(clip, list(prompts))
            in_memory.enter_context(denoiser.loaded())
            return EncodedConcept(examples, protected=protected, source=source)

        options = _options(values, pictures[0])
        monitor = host.NodeMonitor(node.hidden.unique_id, model)
        concept = train_concept(denoiser, encode, bank, spec, config, monitor, options, requested)
    return bank, concept, "learned"


def _options(values: dict, thumbnail) -> RunOptions:
    return RunOptions(
        resume=True,
        restart_if_changed=True,
        replace=values["on_existing"] == "replace",
        thumbnail=thumbnail,
        preview_every=values.get("preview_every", _PREVIEW_EVERY),
    )


def _outputs(node: type[TrainConcept], model, bank: Bank, concept: Concept, news: str) -> io.NodeOutput:
    curve = concept.metrics["loss_curve"]
    patched = host.apply_adapters(model, bank.load([concept])[concept.name])
    plot = to_image(loss_curve(curve, f"{concept.name}: loss"))
    losses = {"loss": [torch.tensor(loss) for loss in curve]}
    text = f"{concept.name} {news}. Final loss {concept.metrics['final_loss']:.4f}. File: {bank.folder / concept.file}"
    if full := full_layers(bank, concept):
        text += "\n" + describe_full_layers(full, concept.rank)
    return io.NodeOutput(bank, concept.name, patched, losses, plot, ui=host.node_text(node, text))
