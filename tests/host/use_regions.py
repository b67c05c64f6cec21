"""Draw with confined concepts and regions in the host, next to other nodes, and print what comes of it as JSON.

python use_regions.py COMFYUI_DIR BASE_DIRECTORY
"""

import contextlib
import copy
import dataclasses
import functools
import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

COMFYUI, BASE = sys.argv[1:]
sys.path[:0] = [COMFYUI, str(Path(BASE) / "custom_nodes")]
sys.argv[1:] = [
    "--cpu",
    "--fp32-unet",
    "--base-directory",
    BASE,
]  # the host reads its own options from here when it is imported

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management as model_management  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402
import utils.install_util  # noqa: E402, F401  (before the host's nodes put another `utils` on the path)
from comfy.patcher_extension import WrappersMP  # noqa: E402
from comfy_extras.nodes_freelunch import FreeU  # noqa: E402
from comfy_extras.nodes_hypertile import HyperTile  # noqa: E402
from seqlora.nodes.compose import ComposeConcepts  # noqa: E402
from seqlora.nodes.compose_regions import ComposeRegions  # noqa: E402
from seqlora.nodes.host import model as host_model  # noqa: E402
from seqlora.nodes.host.own_words import own_rows  # noqa: E402
from seqlora.nodes.host.texts import count_tokens  # noqa: E402
from seqlora.nodes.host.words import known_words  # noqa: E402
from seqlora.nodes.region import RegionNode  # noqa: E402
from seqlora.seqlora_core.bank import Bank, NewConcept  # noqa: E402
from seqlora.seqlora_core.composition.regions import Box, Region  # noqa: E402
from seqlora.seqlora_core.composition.selection import parse_selections  # noqa: E402
from seqlora.seqlora_core.data.own_words import own_word_rows  # noqa: E402
from seqlora.seqlora_core.errors import UserError  # noqa: E402
from seqlora.seqlora_core.model.adapters import Adapter  # noqa: E402
from seqlora.seqlora_core.model.sd15 import find_layers, in_preset, module_names  # noqa: E402

import nodes as stock  # noqa: E402

CHECKPOINT = Path(BASE) / "models" / "checkpoints" / "small.safetensors"
WHOLE = Box(0, 0, 1, 1)
PROMPT, NEGATIVE = "a sksdog and a (skscat cat:1.2) on grass", "blurry, a skscat cat"
PROMPTS = [
    *("", "a dog", "a sksdog", "SKSDOG, SksCat Cat", "(sksdog:1.3), a (skscat:1.1) cat", "dogs and cats"),
    *("sksbird bird skscat cat sksdog", "a (sksbird:0.5) bird.", "sksdog-like, [skscat cat]"),
]
LONG = f"{'very old, ' * 50} {PROMPT}"
CONCEPTS = "dog:0.8, cat, bird:0.5"
PRESETS = {"dog": "cross-kv", "cat": "cross-kv", "bird": "all"}
Patch = Callable[[object], object]


def load() -> tuple:
    model, clip, *_ = comfy.sd.load_checkpoint_guess_config(str(CHECKPOINT), output_vae=False, output_clip=True)
    encoder = clip.cond_stage_model.clip_l
    del encoder.transformer.text_model.encoder.layers[2:]  # which would take minutes
    encoder.num_layers = 2
    return model, clip


def fill(model) -> Bank:
    """A bank of three concepts that change images visibly; the dog has a learned word."""
    folder = Path(BASE) / "region banks" / "pets"
    shutil.rmtree(folder, ignore_errors=True)
    base, shapes = host_model.identify(model, "small")
    bank, generator = Bank.open_or_create(folder, base, shapes), torch.Generator().manual_seed(0)
    for name, preset in PRESETS.items():
        adapters = {
            layer: Adapter(
                torch.randn(shape.out, 2, generator=generator) / 4,
                torch.randn(2, shape.width, generator=generator) / shape.width**0.5,
            )
            for layer, shape in shapes.items()
            if in_preset(layer, preset)
        }
        word = torch.randn(2, 768, generator=generator) if name == "dog" else None
        bank.add(NewConcept(name, f"sks{name}", name, rank=2, method="plain", adapters=adapters, word=word))
    return bank


for node in (ComposeConcepts, ComposeRegions):
    node.hidden = SimpleNamespace(prompt=None, unique_id=None)  # which the host sets for a queued graph
model, clip = load()
identified = host_model.identify(model, "small")
host_model.identify = lambda *args: identified  # hashing all weights each time would take longer than the rest
bank = fill(model)


def regional(regions=(), prompt: str = "other", negative: str = "nothing", concepts: str = "", given=None) -> tuple:
    """MODEL, positive, negative, trigger words and report of Compose Regions."""
    return ComposeRegions.execute(given or model, bank, clip, prompt, negative, regions, concepts).args


def encode(clip, prompt: str) -> list:
    return stock.CLIPTextEncode().encode(clip, prompt)[0]


@functools.cache
def composed(acts_on: str = "everything", prompt: str = PROMPT, concepts: str = CONCEPTS, given=None) -> tuple:
    """MODEL, positive and negative of Compose Concepts and CLIP Text Encode."""
    patched, _, _, knowing = ComposeConcepts.execute(given or model, bank, concepts, clip=clip, acts_on=acts_on).args
    return patched, encode(knowing, prompt), encode(knowing, NEGATIVE)


def draw(patched, positive, negative, size=(9, 5), batch: int = 2, steps: int = 1, denoise: float = 1.0) -> dict:
    """What the UNet predicts of the noise in each step, as {"positive": ..., "negative": ...}, and its evaluations."""
    caught, evaluations, m = {"positive": [], "negative": []}, [], patched.clone()

    def catch(args):
        for name, denoised in zip(caught, args["conds_out"], strict=True):
            caught[name].append((args["input"] - denoised) / args["sigma"].view(-1, 1, 1, 1))
        return args["conds_out"]

    def counted(executor, *args, **kwargs):
        evaluations.append(args[0].shape[0])
        return executor(*args, **kwargs)

    m.set_model_sampler_pre_cfg_function(catch, disable_cfg1_optimization=True)
    m.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "tests", counted)
    latent = torch.zeros(batch, 4, *size)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)  # HyperTile draws its tiles
    settings = {"denoise": denoise, "disable_pbar": True}
    comfy.sample.sample(m, noise, steps, 7.0, "euler", "normal", positive, negative, latent, **settings)
    return {**{name: torch.stack(own) for name, own in caught.items()}, "evaluations": evaluations}


def difference(one: dict, other: dict, swapped: bool = False) -> float:
    names = ("positive", "negative")
    pairs = zip(reversed(names) if swapped else names, names, strict=True)
    return max((one[own] - other[name]).abs().max().item() for own, name in pairs)


def whole(prompt: str = PROMPT, concepts: str = CONCEPTS) -> Region:
    return Region(prompt, WHOLE, NEGATIVE, tuple(parse_selections(concepts)), strength=1.0)


def against_stock(
    patch: Patch = lambda m: m,
    on_prompts: Callable = lambda *sides: sides,
    prompt: str = PROMPT,
    concepts: str = CONCEPTS,
    shared: dict | None = None,
    **settings,
) -> float:
    """How far a region over the whole canvas is from the stock patch, when another node changes both alike.

    Args:
        shared: the global prompts, where they matter.
    """
    patched, *sides = regional([whole(prompt, concepts)], **(shared or {}))[:3]
    ours = draw(patch(patched), *on_prompts(*sides), **settings)
    patched, *sides = composed(prompt=prompt, concepts=concepts)
    return difference(ours, draw(patch(patched), *on_prompts(*sides), **settings))


def ip_adapter(patched):
    """Adds something to the output of every cross-attention, as IPAdapter does."""
    patched = patched.clone()

    def attend(q, k, v, options):
        out = comfy.ldm.modules.attention.optimized_attention(q, k, v, options["n_heads"], transformer_options=options)
        return out + 0.3 * torch.sin(q)

    for block, number in (("input", 1), ("input", 3), ("middle", 0), ("output", 0), ("output", 2)):
        for index in range(2):
            patched.set_model_attn2_replace(attend, block, number, index)
    return patched


def tiled(patched):
    return HyperTile.execute(patched, 64, 2, 0, False)[0]


def other_attention(patched):
    """Another kernel for attention, by the host's own option."""
    patched = patched.clone()
    kernel = comfy.ldm.modules.attention.attention_basic
    patched.model_options["transformer_options"]["optimized_attention_override"] = lambda own, *args, **kwargs: (
        2 * kernel(*args, **kwargs)
    )
    return patched


def stock_lora(patched):
    generator = torch.Generator().manual_seed(2)
    names = module_names(patched.model.diffusion_model)
    layers = find_layers(patched.model.diffusion_model)
    patched = patched.clone()
    patched.add_patches(
        {
            f"diffusion_model.{names[layer]}.weight": (
                "diff",
                (0.02 * torch.randn(module.weight.shape, generator=generator),),
            )
            for layer, module in layers.items()
        }
    )
    return patched


def controlled(*sides) -> tuple:
    net = stock.ControlNetLoader().load_controlnet("small.safetensors")[0]
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(3))
    return stock.ControlNetApplyAdvanced().apply_controlnet(*sides, net, image, 1.0, 0.0, 1.0)


def deep_cloned(patched):
    """As the host clones a MODEL for another graphics card."""
    model_management.unload_all_models()
    if hasattr(patched, "deepclone_multigpu"):
        return patched.deepclone_multigpu(patched.load_device)
    clone = patched.clone()
    clone.model, clone.backup = copy.deepcopy(patched.model), {}
    return clone


def with_low_memory() -> float:
    """With weights that the host casts layer by layer, because the model does not fit."""
    model.unpatch_model(model.offload_device)
    load_models = model_management.load_models_gpu

    def load_partly(models, *args, **kwargs):
        for own in models:
            own.model.current_weight_patches_uuid = None
            own.patch_model(own.load_device, lowvram_model_memory=2**20)

    patched, *sides = composed()
    expected = draw(patched, *sides)
    model_management.unload_all_models()
    patched, *sides = regional([whole()])[:3]
    model_management.load_models_gpu = load_partly
    try:
        cast = draw(patched, *sides)
    finally:
        model_management.load_models_gpu = load_models
        patched.unpatch_model(patched.offload_device)
    return difference(cast, expected)


def watched(layer: str, patched, positive, **settings) -> torch.Tensor:
    """What a layer puts out in the first evaluation, with everything that was added to it."""
    seen, patched = [], patched.clone()
    unet = patched.model.diffusion_model
    module = unet.get_submodule(next(name for name in module_names(unet).values() if name.endswith(layer)))

    def watch(executor, *args, **kwargs):
        handle = module.register_forward_hook(lambda own, inputs, output: seen.append(output.clone()))
        try:
            return executor(*args, **kwargs)
        finally:
            handle.remove()

    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watching", watch)
    draw(patched, positive, positive, batch=1, **settings)
    return seen[0][0]


def own_rows_of_keys() -> dict:
    """The rows of the keys that own words change, and how far they are from those of each concept alone."""
    results = {}
    for name, prompt in (("short", PROMPT), ("long", LONG)):
        own = watched("attn2.to_k", *composed("own-words", prompt=prompt)[:2])
        plain = watched("attn2.to_k", *composed(prompt=prompt, concepts="dog:0, cat:0")[:2])
        alone = [
            watched("attn2.to_k", *composed(prompt=prompt, concepts=own)[:2])
            for own in ("dog:0.8, cat:0", "dog:0, cat")
        ]
        rows = ((own - plain).abs().amax(-1) > 1e-4).nonzero().flatten().tolist()
        nearer = torch.stack([(own[rows] - other[rows]).abs().amax(-1) for other in alone]).amin(0)
        results[name] = {"rows": rows, "tokens": own.shape[0], "from alone": nearer.max().item()}
    return results


def error_of(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except UserError as error:
        return str(error)
    return ""


def region_node(prompt: str = "a sksdog", **changes) -> tuple:
    box = {"left": 0.0, "top": 0.0, "right": 0.5, "bottom": 1.0}
    settings = {**box, "strength": 0.5, "start": 0.0, "end": 1.0, "feather": 0.0, **changes}
    return RegionNode.execute(prompt, **settings).args[0]


def report_of(regions, **settings) -> str:
    return regional(regions, **settings)[4]


def answers() -> dict[str, str]:
    two = [*region_node(), *region_node("a skscat cat", left=0.25, right=1.0)]
    own, positive, negative = composed("own-words")
    average = stock.ConditioningAverage().addWeighted(positive, negative, 0.5)[0]
    combined = [*positive, *stock.ConditioningSetTimestepRange().set_range(positive, 0.0, 0.5)[0], *average]
    zero = stock.ConditioningZeroOut().zero_out(positive)[0]
    joined = stock.ConditioningConcat().concat(positive, negative)[0]
    birds = regional(region_node("a sksbird bird"))
    mixed, regional_positive, regional_negative = regional(two)[:3]
    return {
        "beyond": report_of(region_node(left=-0.5)),
        "overlap": error_of(lambda: draw(mixed, regional_positive, regional_negative)),
        "outside": error_of(lambda: region_node(left=1.5, right=2.0)),
        "empty box": error_of(lambda: region_node(right=0.0)),
        "no prompt": error_of(lambda: region_node("  ")),
        "empty mask": error_of(lambda: region_node(mask=torch.zeros(1, 8, 8))),
        "two masks": error_of(lambda: region_node(mask=torch.ones(2, 8, 8))),
        "two boxes": error_of(lambda: region_node(bounding_box=[[{"x": 0}, {"x": 1}]])),
        "box of words": error_of(lambda: region_node(bounding_box={"x": "left", "y": 0, "width": 8, "height": 8})),
        "box without a width": error_of(lambda: region_node(bounding_box={"x": 0, "y": 0, "height": 8})),
        "times": error_of(lambda: region_node(start=0.5, end=0.5)),
        "unknown": error_of(lambda: regional(region_node(concepts="horse"))),
        "not loaded": error_of(lambda: regional(region_node(concepts="cat"), concepts="dog")),
        "word not loaded": error_of(lambda: regional(region_node("a skscat cat"), concepts="dog")),
        "unnamed": report_of((), prompt="a sksdog", concepts="dog, cat"),
        "not encoded for it": error_of(lambda: draw(own, encode(clip, PROMPT), negative)),
        "encoded for others": error_of(lambda: draw(own, regional_positive, negative)),
        "joined": error_of(lambda: draw(own, joined, negative)),
        "other nodes": error_of(lambda: draw(own, combined, zero)),
        "twice": error_of(lambda: regional(two, given=own)),
        "twice in Compose Concepts": error_of(lambda: composed("own-words", given=own)),
        "attached": error_of(lambda: regional(two, given=composed()[0])),
        "training": error_of(lambda: host_model.check_no_concepts_attached(own)),
        "fusion": error_of(
            lambda: ComposeConcepts.execute(model, bank, "", fusion="loraclr", clip=clip, acts_on="own-words")
        ),
        "no clip": error_of(lambda: ComposeConcepts.execute(model, bank, "", acts_on="own-words")),
        "tiled": error_of(lambda: draw(tiled(birds[0]), *birds[1:3], size=(16, 16))),
    }


def rows_unlike_the_core_s() -> list[str]:
    """Prompts in which the host's tokens have other own words than the core finds in the text."""
    knowing = ComposeConcepts.execute(model, bank, "", clip=clip).args[3]
    subjects, words = [concept.subject for concept in bank.concepts], known_words(knowing)
    unlike = []
    for prompt in PROMPTS:
        found = own_rows(knowing, knowing.tokenize(prompt), subjects)
        count = functools.partial(count_tokens, knowing)
        expected = own_word_rows([prompt], subjects, count, len(found), words)[:, 0].mT
        unlike += [] if torch.equal(found, expected) and found.any() == ("sks" in prompt.lower()) else [prompt]
    return unlike


def survives() -> dict[str, float]:
    """Whether what other nodes make of the CLIP still notes own words: the difference to no concepts at all."""
    _, _, _, knowing = ComposeConcepts.execute(model, bank, "dog, cat", clip=clip, acts_on="own-words").args
    skipped = knowing.clone()
    skipped.clip_layer(-2)
    kinds = {"cloned": knowing.clone(), "skipping": skipped}
    return {
        name: encode(own, PROMPT)[0][1]["model_conds"]["seqlora_rows"].cond.sum().item() for name, own in kinds.items()
    }


def evaluations() -> dict[str, list[int]]:
    """The rows of each evaluation of the UNet in two steps."""
    two = [*region_node(), *region_node("a skscat cat", left=0.5, right=1.0, negative="ugly")]
    long = [*two, *region_node(LONG, top=0.5)]
    counts = {"plain": draw(model, encode(clip, PROMPT), encode(clip, NEGATIVE), steps=2)["evaluations"]}
    counts["regions"] = draw(*regional(two)[:3], steps=2)["evaluations"]
    counts["long regions"] = draw(*regional(long)[:3], steps=2)["evaluations"]
    counts["long prompt"] = draw(*regional(two, prompt=LONG)[:3], steps=2)["evaluations"]
    return counts


def places() -> dict[str, float]:
    """How much a region of the left half changes the keys' and the image layers' part of each half."""

    def output(layer: str, name: str, **changes) -> torch.Tensor:
        region = Region(f"a sks{name} {name}", Box(0, 0, 0.5, 1), concepts=((name, 1.0),), **changes)
        return watched(layer, *regional([region])[:2], size=(8, 8))

    results = {}
    for layer, name in (("attn2.to_out.0", "dog"), ("attn1.to_q", "bird")):
        change = (output(layer, name, strength=1.0) - output(layer, name, strength=0.0)).abs().amax(-1)
        change = change.unflatten(0, (8, 8))
        results[name] = [change[:, :4].max().item(), change[:, 4:].max().item()]
    return results


def times() -> dict[str, list[bool]]:
    """Whether a region acts in each of four steps, up to the first difference in the image."""

    def predicted(**changes) -> torch.Tensor:
        region = dataclasses.replace(Region("a sksdog", WHOLE, strength=1.0), **changes)
        return draw(*regional([region])[:3], batch=1, size=(8, 8), steps=4)["positive"]

    def same(one: torch.Tensor, other: torch.Tensor) -> list[bool]:
        return [torch.equal(*pair) for pair in zip(one, other, strict=True)]

    late, early = predicted(start=0.4), predicted(end=0.4)
    return {"late": same(late, predicted(strength=0.0)), "early": same(early, predicted())}


def logged_of_idle_regions() -> list[str]:
    """What the console says of two regions, one of which acts only between the two steps of a sampling, and of two in a
    sampling that is stopped."""
    log, lines, handler = logging.getLogger(), [], logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    log.addHandler(handler)
    log.setLevel(logging.INFO)  # as the host does
    patched, *sides = regional([*region_node(start=0.3, end=0.6), *region_node("a skscat cat", start=0.3)])[:3]
    draw(patched, *sides, steps=2)
    stopped = patched.clone()
    stopped.set_model_sampler_pre_cfg_function(_stop)
    with contextlib.suppress(InterruptedError):
        draw(stopped, *sides, steps=2)
    log.removeHandler(handler)
    return [line for line in lines if line.startswith("SeqLoRA")]


def _stop(args) -> None:
    raise InterruptedError


def state() -> list:
    encoder = clip.cond_stage_model
    hooks = [
        sum(len(part._forward_pre_hooks) + len(part._forward_hooks) for part in root.modules())
        for root in (model.model, encoder)
    ]
    weights = [own.double().sum().item() for root in (model.model, encoder) for own in root.parameters()]
    options = [sorted(model.patches), repr(model.model_options), repr(model.wrappers), sorted(vars(clip))]
    return [hooks, weights, options, type(clip).__name__, id(clip.tokenizer), sorted(model.attachments)]


@torch.inference_mode()
def main() -> None:
    before = state()
    unpatched = draw(model, encode(clip, PROMPT), encode(clip, NEGATIVE))
    stock_patch = composed()
    patched, positive, negative = regional([whole()])[:3]
    swapped = difference(draw(patched, negative, positive), draw(*stock_patch), swapped=True)
    results = {
        "acts": difference(draw(*stock_patch), unpatched),
        "against stock": {
            "plain": against_stock(),
            "swapped": swapped,
            "one image": against_stock(batch=1, size=(8, 8)),
            "long": against_stock(prompt=LONG),
            "second pass": against_stock(size=(16, 12), denoise=0.5),
            "IPAdapter": against_stock(ip_adapter),
            "FreeU": against_stock(lambda m: FreeU().patch(m, 1.3, 1.4, 0.9, 0.2)[0]),
            "other attention": against_stock(other_attention),
            "LoRA": against_stock(stock_lora),
            "HyperTile": against_stock(tiled, concepts="dog:0.8, cat", size=(16, 16)),
            # Its own layers attend to the global prompt.
            "ControlNet": against_stock(on_prompts=controlled, shared={"prompt": PROMPT, "negative": NEGATIVE}),
            "deep clone": against_stock(deep_cloned),
            "low memory": with_low_memory(),
        },
        "evaluations": evaluations(),
        "own rows": own_rows_of_keys(),
        "answers": answers(),
        "survives": survives(),
        "unlike the core's": rows_unlike_the_core_s(),
        "places": places(),
        "times": times(),
        "logged": logged_of_idle_regions(),
    }
    results["untouched"] = state() == before
    print(json.dumps(results))


if __name__ == "__main__":
    main()
