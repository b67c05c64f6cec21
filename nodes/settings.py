"""SeqLoRA Training Settings."""

from comfy_api.latest import io

from .host import interface
from .setting_inputs import (
    LARGEST_EXACT_INTEGER,
    OWN_SEED,
    SettingsType,
    expert_inputs,
    expert_word_inputs,
    setting_input,
)


class TrainingSettings(io.ComfyNode):
    """Collects the settings of a training run that few users need to change."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return interface.schema(
            node_id="SeqLoRATrainingSettings",
            display_name="SeqLoRA Training Settings",
            search_aliases=["train settings", "learning rate", "min snr", "noise offset", "caption dropout"],
            description="Settings for SeqLoRA Train Concept that few need to change. Optional: without this node, the "
            "defaults hold.",
            inputs=[
                *expert_inputs(advanced=False),
                *expert_word_inputs(advanced=False),
                *_extra_inputs(),
                *_preview_inputs(),
            ],
            outputs=[
                SettingsType.Output("settings", display_name="settings", tooltip="For SeqLoRA Train Concept."),
            ],
        )

    @classmethod
    def execute(cls, **values) -> io.NodeOutput:
        return io.NodeOutput(values)


def _extra_inputs() -> list[io.Input]:
    return [
        setting_input(io.String.Input, "caption_prefix", False),
        setting_input(io.Float.Input, "caption_dropout", False, step=0.05, round=False),
        setting_input(io.Float.Input, "min_snr_gamma", False, max=100.0, step=0.5, round=False),
        setting_input(io.Float.Input, "noise_offset", False, step=0.01, round=False),
        setting_input(io.Combo.Input, "lr_schedule", False),
        setting_input(io.Float.Input, "lr_warmup", False, step=0.05, round=False),
        setting_input(io.Boolean.Input, "alpha_masks", False),
        setting_input(io.Boolean.Input, "buckets", False),
        setting_input(io.Int.Input, "hold_out", False, max=100),
    ]


def _preview_inputs() -> list[io.Input]:
    return [
        io.String.Input(
            "preview_prompt",
            default="",
            optional=True,
            tooltip="The prompt of the preview images; if empty, the caption of the first image.",
        ),
        io.Int.Input(
            "preview_seed",
            default=OWN_SEED,
            min=OWN_SEED,
            max=LARGEST_EXACT_INTEGER,
            control_after_generate=False,
            optional=True,
            tooltip=f"The random seed of the preview images; {OWN_SEED}: that of the training run. It does not change "
            "the concept.",
        ),
    ]
