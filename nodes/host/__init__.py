"""The adapter to ComfyUI: its submodules alone know the host's insides.

`model`, `encoders` (with `texts`, `latents` and what is `kept` of them), `text_encoder` and `source` hold what the core
needs of MODEL, CLIP and VAE; `words` makes CLIPs that know learned words; `own_words` and `regional_texts` note in
conditionings where concepts act, and `confined` lets them act there; `interface` what nodes look like and report;
`folders` where things lie, `exporting` what is written there; `routes` what the page asks for, `runs` what it shows of
training; `prompt` what the queued graph says; `console` what the log says.
"""

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE

__all__ = ["CLIP", "VAE", "ModelPatcher"]
