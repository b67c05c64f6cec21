"""Confined concepts on the host's MODEL: what `composition.confinement` defines, inside the host's UNet.

No weight is patched.  A wrapper around each evaluation of the UNet takes what belongs to the prompts out of its
arguments (see `own_words`) and puts hooks on the attention layers while the evaluation lasts.  The layers are looked up
in the UNet that runs: the host may have cloned it for another graphics card, and may page its weights in and out.
"""

import inspect
import sys
import weakref
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import comfy.ldm.modules.attention as host_attention
import torch
from comfy.patcher_extension import CallbacksMP, WrapperExecutor, WrappersMP
from torch import Tensor, nn

from ...seqlora_core.bank import Concept
from ...seqlora_core.composition.confinement import Confinement
from ...seqlora_core.composition.regions import (
    Box,
    attend_in_regions,
    covered_tokens,
    describe_idle_regions,
    region_weights,
)
from ...seqlora_core.errors import UserError
from ...seqlora_core.model.adapters import Adapter, attach
from ...seqlora_core.model.sd15 import TIMESTEPS, module_names, receives_text
from ..cache_keys import values_fingerprint
from . import ModelPatcher
from .console import say
from .model import check_fits, note_concepts
from .own_words import IDENTITY, REGIONAL_ROWS, REGIONAL_TEXTS, ROWS

_KEY = "seqlora"


def confine_model(
    model: ModelPatcher, confinement: Confinement, concepts: Iterable[Concept], identity: str, advice: str
) -> ModelPatcher:
    """A clone of MODEL on which concepts act where a `Confinement` lets them; its prompts must be `own_words`' kind.

    Args:
        confinement: its `text` is not used, because each conditioning has its own.
        concepts: the records of the confinement's concepts, which are noted on the clone.
        identity: see `identify`.
        advice: how to encode prompts for the model, for the user.

    Raises:
        UserError: a layer is missing, or MODEL has confined concepts already.
    """
    check_not_confined(model)
    check_fits(model, confinement.adapters)
    clone = model.clone()
    note_concepts(clone, concepts)
    confined = _Confined(confinement, identity, advice)
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, _KEY, confined)
    clone.add_callback_with_key(CallbacksMP.ON_CLEANUP, _KEY, confined.release)
    return clone


def check_not_confined(model: ModelPatcher) -> None:
    """Raises UserError where a MODEL has confined concepts: a prompt's tokens can be marked for one node only."""
    if model.get_wrappers(WrappersMP.DIFFUSION_MODEL, _KEY):
        raise UserError(
            "The model already has concepts that act on their own words or in regions: select all concepts in one "
            "node, and connect the model from before the other."
        )


def identify(confinement: Confinement, concepts: Iterable[Concept]) -> str:
    """What tells a composition apart from others: its concepts, and where its regions lie and when they act."""
    regions = [
        (tuple(r.area) if isinstance(r.area, Box) else r.area, r.strength, r.start, r.end, r.feather)
        for r in confinement.regions
    ]
    return values_fingerprint([[concept.id for concept in concepts], regions])


class _Confined:
    """The wrapper.

    Attributes:
        _placed: the concepts' factors, and whose each direction is, by device and precision while a sampling lasts;
            several graphics cards may evaluate at once.
        _progresses: at which shares of the sampling the UNet was evaluated.
    """

    def __init__(self, confinement: Confinement, identity: str, advice: str) -> None:
        self.confinement, self._identity, self._advice = confinement, identity, advice
        self._placed: dict[tuple[torch.device, torch.dtype], _Factors] = {}
        self._progresses: set[float] = set()
        self._names: weakref.WeakKeyDictionary[nn.Module, dict[str, str]] = weakref.WeakKeyDictionary()

    def __call__(self, executor: WrapperExecutor, *args, **kwargs) -> Tensor:
        identity, rows = kwargs.pop(IDENTITY, None), kwargs.pop(ROWS, None)
        texts, regional_rows = kwargs.pop(REGIONAL_TEXTS, None), kwargs.pop(REGIONAL_ROWS, None)
        if rows is None:
            raise UserError(f"A prompt does not say where the concepts on the model act: {self._advice}.")
        if identity != self._identity:
            raise UserError(f"A prompt was encoded for other concepts or regions than the model's: {self._advice}.")
        given = inspect.signature(executor.original).bind(*args, **kwargs).arguments
        if rows.shape[:2] != given["context"].shape[:2]:
            raise UserError(
                "A prompt was joined with another after it was encoded, so the concepts' words cannot be found: write "
                "both in one text, and leave out nodes like Conditioning (Concat)."
            )
        progress = _progress(given["timesteps"], self.confinement)
        self._progresses.add(progress)
        factors, unet = self._factors_as(given["x"]), executor.class_obj
        evaluation = _Evaluation(self.confinement, factors, given["transformer_options"], progress)
        evaluation.receive(rows, texts, regional_rows)
        with ExitStack() as hooks:
            evaluation.put_hooks(unet, self._names_in(unet), hooks)
            return executor(*args, **kwargs)

    def release(self, patcher: ModelPatcher) -> None:
        """Free what lies on devices, and report regions that never acted; the host calls this after a sampling."""
        self._placed.clear()
        if self._progresses and sys.exc_info()[1] is None:  # a run that was stopped may not have come to them
            for note in describe_idle_regions(self.confinement.regions, self._progresses):
                say(note)
        self._progresses.clear()

    def _names_in(self, unet: nn.Module) -> dict[str, str]:
        names = self._names.get(unet)
        if names is None:
            names = self._names[unet] = module_names(unet)
        return names

    def _factors_as(self, x: Tensor) -> "_Factors":
        """The concepts' factors on the device and in the precision of a tensor."""
        key = x.device, x.dtype
        if key not in self._placed:
            self._placed[key] = _Factors(
                {
                    layer: Adapter(adapter.up.to(*key), adapter.down.to(*key))
                    for layer, adapter in self.confinement.adapters.items()
                },
                {layer: owners.to(x.device) for layer, owners in self.confinement.owners.items()},
            )
        return self._placed[key]


class _Factors(NamedTuple):
    """Adapters by layer, and the index of the concept that each of their directions belongs to."""

    adapters: Mapping[str, Adapter]
    owners: Mapping[str, Tensor]


class _Shares(NamedTuple):
    """What regions have of a layer's tokens.

    Attributes:
        weights: the share of each region in each token, [regions, tokens].
        acting: those of the regions that act now.
        tokens: of each of these, the tokens with a share.
    """

    weights: Tensor
    acting: Tensor
    tokens: list[Tensor]


def _progress(timesteps: Tensor, confinement: Confinement) -> float:
    """The share of the sampling that is done, as the host's nodes for start and end count it: in timesteps."""
    if all(region.start == 0 and region.end == 1 for region in confinement.regions):
        return 0.0  # reading the timestep would wait for the graphics card
    return min(max(1 - timesteps.max().item() / (TIMESTEPS - 1), 0.0), 1.0)


class _Evaluation:
    """One evaluation of the UNet: the batch's texts, the regions that act, and where layers find their factors.

    Args:
        options: the host's `transformer_options`, in which it writes how large the image is in the layer that runs.
        progress: see `_progress`.
    """

    def __init__(self, confinement: Confinement, factors: _Factors, options: dict, progress: float) -> None:
        self.options, self._confinement, self._factors, self._progress = options, confinement, factors, progress
        self._acting = [place for place, own in enumerate(confinement.regions) if own.acts_at(progress)]
        self._shares: dict[tuple[int, int], _Shares] = {}

    def receive(self, rows: Tensor, texts: Tensor | None, regional_rows: Tensor | None) -> None:
        """Take what belongs to the prompts of the batch, and those of the regions that act now.

        Args:
            rows: [batch, T, C].
            texts: [batch, R, L, 768], or None without regions.
            regional_rows: [batch, R, L, C], or None without regions.
        """
        self.texts, self._rows = None, rows
        if self._acting:
            self.texts = texts[:, self._acting].flatten(1, 2)  # [batch, regions L, 768]
            self._rows = torch.cat([rows, regional_rows[:, self._acting].flatten(1, 2)], dim=1)

    def put_hooks(self, unet: nn.Module, names: Mapping[str, str], hooks: ExitStack) -> None:
        """Put hooks on the layers of the UNet, which go when the stack is closed.

        Args:
            names: the layers' names in the UNet, by canonical name.
        """
        layers = {layer: unet.get_submodule(names[layer]) for layer in self._factors.adapters}
        hooks.enter_context(attach(layers, self._factors.adapters, scale=self._scale))
        if self._acting:
            for name in {name.rpartition(".")[0] for layer, name in names.items() if receives_text(layer)}:
                _RegionalAttention(self, unet.get_submodule(name)).put_hooks(hooks)

    def shares(self, tokens: int) -> "_Shares":
        """What regions have of the tokens of the layer that runs."""
        height, width = self.options["activations_shape"][-2:]
        if tokens != height * width:
            raise UserError(
                "Another node on the model cuts or merges the image inside the attention layers, as HyperTile does, so "
                "regions cannot be found there: leave that node out."
            )
        if (height, width) not in self._shares:
            device = self._rows.device
            weights = region_weights(self._confinement.regions, height, width, self._progress)
            acting = weights[self._acting]
            covered = [own.to(device) for own in covered_tokens(acting)]
            self._shares[height, width] = _Shares(weights.to(device), acting.to(device), covered)
        return self._shares[height, width]

    def _scale(self, layer: str, down: Tensor) -> Tensor:
        """Scale the directions of a layer, [batch, tokens, sum of ranks] (see `adapters.attach`)."""
        if receives_text(layer):
            factors = self._rows
            if down.shape[:2] != factors.shape[:2]:
                raise UserError(
                    "Another node on the model changes the prompts inside the UNet, so the concepts' words cannot be "
                    "found there: leave that node out, or set acts_on of Compose Concepts to everything."
                )
        else:
            regional = bool(self._confinement.regions)
            weights = self.shares(down.shape[1]).weights if regional else down.new_zeros(0, down.shape[1])
            factors = self._confinement.place_factors(weights)
        return down * factors[..., self._factors.owners[layer]].to(down)


class _RegionalAttention:
    """One cross-attention in one evaluation: the regions' keys and values are made with the global ones."""

    def __init__(self, evaluation: _Evaluation, attention: nn.Module) -> None:
        self._evaluation, self._attention = evaluation, attention
        self._queries = None
        self._keys_values: dict[str, tuple[Tensor, Tensor]] = {}  # global and regional, by layer

    def put_hooks(self, hooks: ExitStack) -> None:
        """Put hooks on the layers, behind those that add the concepts."""
        attention = self._attention
        handles = [attention.to_q.register_forward_hook(self._keep_queries)]
        for name in ("to_k", "to_v"):
            layer = attention.get_submodule(name)
            handles.append(layer.register_forward_pre_hook(self._join_texts))
            handles.append(layer.register_forward_hook(partial(self._split_texts, name)))
        handles.append(attention.to_out.register_forward_pre_hook(self._add_regions))
        for handle in handles:
            hooks.callback(handle.remove)

    def _join_texts(self, layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (text,), regional = inputs, self._evaluation.texts
        if text.shape[0] != regional.shape[0]:
            raise UserError(
                "Another node on the model divides the prompts among regions, too: leave that node out, or the regions "
                "of Compose Regions."
            )
        return (torch.cat([text, regional.to(text)], dim=1),)

    def _split_texts(self, name: str, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        end = output.shape[1] - self._evaluation.texts.shape[1]
        self._keys_values[name] = output[:, :end], output[:, end:]
        return output[:, :end]

    def _keep_queries(self, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self._queries = output

    def _add_regions(self, projection: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        """Give the regions their share of the attention's output, and keep what other nodes added to it."""
        (output,), queries = inputs, self._queries
        shares = self._evaluation.shares(queries.shape[1])
        (keys, regional_keys), (values, regional_values) = self._keys_values["to_k"], self._keys_values["to_v"]
        count = len(shares.tokens)
        keys_values = [half.unflatten(1, (count, -1)) for half in (regional_keys, regional_values)]

        def attend(region: int, own: Tensor) -> Tensor:
            return self._attend(queries[:, own], *(half[:, region] for half in keys_values))

        replaced = self._evaluation.options.get("patches_replace", {}).get("attn2")
        plain = self._attend(queries, keys, values) if replaced else None
        return (attend_in_regions(attend, output, shares.acting, shares.tokens, plain),)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention by the kernel that the host, or another node, has chosen."""
        return host_attention.optimized_attention(
            queries,
            keys,
            values,
            self._attention.heads,
            attn_precision=self._attention.attn_precision,
            transformer_options=self._evaluation.options,
        )
