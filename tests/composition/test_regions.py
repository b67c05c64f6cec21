"""Concepts that are confined to their own words, and to regions of the image."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqlora_core.composition.confined_sampling import confine_on, generate_confined
from seqlora_core.composition.confinement import confine
from seqlora_core.composition.regions import (
    Box,
    Canvas,
    Region,
    describe_cut_boxes,
    describe_idle_regions,
    parse_region,
    region_weights,
)
from seqlora_core.composition.selection import SelectedConcept
from seqlora_core.data.own_words import own_word_rows
from seqlora_core.errors import UserError
from seqlora_core.model.adapters import Adapter, attach, sum_adapters
from seqlora_core.model.base import load_base
from seqlora_core.model.sampling import SamplingSettings, generate
from seqlora_core.model.sd15 import find_layers, in_preset, layer_shapes

SETTINGS = SamplingSettings(steps=3, size=64, seed=5, count=2, negative_prompt="blurry")
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"


def concept(shapes, name: str, seed: int, preset: str = "cross-kv") -> SelectedConcept:
    """Random factors that change images visibly, with a word "sksNAME" of two vectors."""
    generator = torch.Generator().manual_seed(seed)
    adapters = {
        layer: Adapter(
            0.3 * torch.randn(shape.out, 2, generator=generator), 0.3 * torch.randn(2, shape.width, generator=generator)
        )
        for layer, shape in shapes.items()
        if in_preset(layer, preset)
    }
    return SelectedConcept(
        name, f"sks{name}", adapters, 0.8, {f"sks{name}": 0.1 * torch.randn(2, 64, generator=generator)}
    )


@pytest.fixture(scope="module")
def base(base_folder):
    return load_base(str(base_folder), "cpu")


def words_of(*parts: SelectedConcept) -> dict[str, torch.Tensor]:
    return {word: vectors for part in parts for word, vectors in part.words.items()}


def predictions(base, draw, **changes) -> list[torch.Tensor]:
    """What the UNet predicts in each step of a run, for all rows of the batch."""
    caught = []
    hook = base.pipeline.unet.register_forward_hook(lambda unet, inputs, output: caught.append(output[0]))
    try:
        draw(dataclasses.replace(SETTINGS, **changes))
    finally:
        hook.remove()
    return caught


def regional(base, prompt, parts, regions):
    """Draws with regions, under given settings."""
    words = words_of(*parts)
    return lambda settings: generate_confined(
        base, confine_on(base, prompt, parts, settings, words, regions), settings, words
    )


def count_words(text: str) -> int:
    return 2 + len(text.split())


def test_own_rows_are_those_of_the_word_and_of_no_other_token():
    rows = own_word_rows(["", "a (skscat cat:1.2) near sksdog", "sksdogs"], ["sksdog", "skscat cat"], count_words, 8)
    assert rows.tolist() == [
        [[0] * 8, [0, 0, 0, 0, 0, 1, 0, 0], [0] * 8],
        [[0] * 8, [0, 0, 1, 1, 0, 0, 0, 0], [0] * 8],
    ]


def test_a_weight_inside_of_a_subject_leaves_all_its_rows():
    assert own_word_rows(["a (skscat:1.2) cat here"], ["skscat cat"], count_words, 7).tolist() == [
        [[0, 0, 1, 1, 0, 0, 0]]
    ]


def test_a_word_that_is_cut_off_has_no_rows_beyond_the_prompt():
    assert own_word_rows(["a b c sksdog"], ["sksdog"], count_words, 5).sum() == 0


def test_own_rows_lie_where_the_encoder_puts_the_word(text_encoder):
    words = {"sksdog": 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))}
    prompt = "an old (sksdog:1.3), at sea"
    rows = own_word_rows([prompt], ["sksdog"], lambda text: text_encoder.count_tokens(text, words), 77, words)[0, 0]
    seen = []
    hook = text_encoder.model.get_input_embeddings().register_forward_hook(lambda *call: seen.append(call[2]))
    try:
        text_encoder.encode_weighted(prompt, words)
    finally:
        hook.remove()
    moved = text_encoder._tokenize(["an old ", "sksdog", ", at sea"], words)[1]
    ((place, vectors),) = moved
    assert rows.nonzero().flatten().tolist() == list(range(place, place + len(vectors)))


def test_own_words_change_keys_only_where_a_computation_by_hand_does(denoiser):
    layers = find_layers(denoiser.unet)
    name = f"{ATTENTION}.to_k"
    part = concept(layer_shapes(layers), "dog", 1)
    text = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(2))
    confinement = confine([part], ("", "a sksdog on grass"), count_words, 6)

    def scale(layer, down):
        return down * confinement.text_factors(layer)

    with torch.no_grad(), attach(layers, confinement.adapters, scale=scale):
        keys = layers[name](text)
    adapter, weight = part.adapters[name], layers[name].weight
    expected = text @ weight.T
    expected[1, 2] += 0.8 * adapter.up @ (adapter.down @ text[1, 2])  # the start token and "a" are before the word
    assert torch.allclose(keys, expected, atol=1e-5)
    assert (expected[1, 2] - weight @ text[1, 2]).abs().max() > 0.01


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_a_region_over_the_whole_canvas_is_the_plain_sum(base, guidance):
    """Of every row of the batch in the first step; guidance multiplies rounding in later ones."""
    parts = [concept(base.layers, "dog", 1), concept(base.layers, "cat", 2, "all")]
    prompt = "a sksdog and a (skscat:1.2)"
    words, summed = words_of(*parts), sum_adapters([(part.adapters, part.strength) for part in parts])
    plain, *_ = predictions(base, lambda s: generate(base, prompt, summed, s, words), guidance=guidance, steps=1)
    region = Region(prompt, Box(0, 0, 1, 1), strength=1)
    ours, *_ = predictions(base, regional(base, "other", parts, [region]), guidance=guidance, steps=1)
    bare, *_ = predictions(base, lambda s: generate(base, prompt, {}, s, words), guidance=guidance, steps=1)
    assert len(plain) == (4 if guidance > 1 else 2)
    assert (plain - bare).abs().max() > 0.01
    assert torch.allclose(ours, plain, rtol=0, atol=1e-5)


def test_a_region_without_a_prompt_keeps_that_of_the_whole_image(base):
    parts, prompt = [concept(base.layers, "dog", 1), concept(base.layers, "cat", 2)], "a sksdog and a skscat"
    first, second = (
        predictions(base, regional(base, prompt, parts, [Region(text, Box(0, 0, 0.5, 1), concepts=(("dog", 1.0),))]))
        for text in ("", prompt)
    )
    assert all(map(torch.equal, first, second))


def test_a_region_without_strength_is_the_global_prompt(base):
    parts = [concept(base.layers, "dog", 1), concept(base.layers, "cat", 2)]
    prompt = "a sksdog and a skscat"
    region = Region("a sksdog", Box(0, 0, 0.5, 1), strength=0)
    ours = predictions(base, regional(base, prompt, parts, [region]))
    assert all(map(torch.equal, ours, predictions(base, regional(base, prompt, parts, []))))


def test_two_regions_run_the_unet_as_often_as_none_and_leave_it_as_it_was(base):
    unet, calls = base.pipeline.unet, []
    parts = [concept(base.layers, "dog", 1, "all"), concept(base.layers, "cat", 2)]
    regions = [Region("a sksdog", Box(0, 0, 0.5, 1)), Region("a skscat", Box(0.5, 0, 1, 1))]
    processors = dict(unet.attn_processors)
    keys = unet.get_submodule(f"{ATTENTION}.to_k")
    made = []
    hooks = [
        unet.register_forward_hook(lambda *call: calls.append(1)),
        keys.register_forward_hook(lambda *call: made.append(call[1][0].shape[0])),
    ]
    counts = []
    for draw in (
        lambda s: generate(base, "a dog", None, s),
        regional(base, "a sksdog and a skscat", parts, regions),
    ):
        calls.clear()
        images = draw(SETTINGS)
        counts.append(len(calls))
    for hook in hooks:
        hook.remove()
    assert counts[0] == counts[1] == 3 and len(images) == 2
    assert sorted(made) == [2, 2] + [4] * 6  # global keys in every step of both runs, each region's once
    assert unet.attn_processors == processors and not keys._forward_hooks and not unet._forward_pre_hooks


def test_a_concept_in_image_layers_acts_on_the_tokens_of_its_region_alone(base):
    part = concept(base.layers, "dog", 1, "all")
    part = dataclasses.replace(part, adapters={f"{ATTENTION}.to_out.0": part.adapters[f"{ATTENTION}.to_out.0"]})
    project, dropout = base.pipeline.unet.get_submodule(ATTENTION).to_out
    seen = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for module in (project, dropout)
    ]
    region = Region("a sksdog", Box(0, 0, 0.5, 1), strength=1)
    regional(base, "a sksdog", [part], [region])(dataclasses.replace(SETTINGS, steps=1))
    for hook in hooks:
        hook.remove()
    change = (seen[1] - project(seen[0])).abs().amax(-1).unflatten(1, (8, 8))
    assert change[..., 4:].max() < 1e-5 < 1e-3 < change[..., :4].min()


def test_a_region_acts_from_its_start_to_its_end():
    region = Region("a dog", Box(0, 0, 1, 1), start=0.25, end=0.75)
    assert [region.acts_at(progress) for progress in (0, 0.25, 0.5, 0.75)] == [False, True, True, False]
    assert Region("a dog", Box(0, 0, 1, 1)).acts_at(1.0)


# Edges in 64ths, so that mirroring rounds nothing.
edges = st.tuples(st.integers(-13, 40), st.integers(3, 40)).map(lambda pair: (pair[0] / 64, sum(pair) / 64))
boxes = st.tuples(edges, edges).map(lambda sides: Box(sides[0][0], sides[1][0], sides[0][1], sides[1][1]))
on_canvas = boxes.filter(lambda box: box.right > 0.01 and box.bottom > 0.01)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(on_canvas, st.floats(0, 1), st.floats(0, 0.5)), min_size=1, max_size=4),
    st.tuples(st.integers(1, 13), st.integers(1, 13)),
)
def test_shares_are_never_negative_and_sum_to_at_most_1(drawn, size):
    regions = [Region("a dog", box, strength=strength, feather=feather) for box, strength, feather in drawn]
    weights = region_weights(regions, *size)
    assert weights.min() >= 0 and weights.sum(0).max() <= 1 + 1e-6


@settings(max_examples=40)
@given(on_canvas, st.floats(0, 0.5), st.integers(1, 13), st.integers(1, 13))
def test_a_mirrored_box_has_the_mirrored_mask(box, feather, height, width):
    mirrored = Box(1 - box.right, box.top, 1 - box.left, box.bottom)
    masks = [Region("a dog", area, feather=feather).mask(height, width) for area in (box, mirrored)]
    assert torch.allclose(masks[0].flip(1), masks[1], atol=1e-5)


@settings(max_examples=40)
@given(on_canvas, st.sampled_from([0.0, 0.1, 0.4]))
def test_a_coarse_mask_is_the_mean_of_the_fine_one(box, feather):
    region = Region("a dog", box, feather=feather)
    fine = region.mask(16, 12).unflatten(0, (8, 2)).unflatten(2, (6, 2)).mean((1, 3))
    assert torch.allclose(region.mask(8, 6), fine, atol=1e-5)


def test_feathered_neighbours_add_up_to_1_and_canvas_edges_stay_sharp():
    left, right = (Region("a", Box(*x), feather=0.3).mask(8, 8) for x in ((0, 0, 0.4, 1), (0.4, 0, 1, 1)))
    assert torch.allclose(left + right, torch.ones(8, 8))
    assert left[0, 0] == 1 and 0 < left[0, 3] < 1


def test_overlaps_are_shared_and_gaps_are_the_global_prompt_s():
    regions = [Region("a", Box(0, 0, 0.5, 1), strength=1), Region("b", Box(0.25, 0, 0.75, 1), strength=1)]
    assert region_weights(regions, 1, 4).tolist() == [[1, 0.5, 0, 0], [0, 0.5, 1, 0]]


def test_grids_of_odd_canvases_round_up_at_each_level():
    canvas = Canvas(13, 9)
    assert [canvas.grid(tokens) for tokens in (117, 35, 12, 4)] == [(13, 9), (7, 5), (4, 3), (2, 2)]


def test_a_mask_is_scaled_to_the_grid():
    mask = torch.zeros(4, 6)
    mask[:, :3] = 1
    assert Region("a", mask).mask(2, 4).tolist() == [[1, 1, 0, 0]] * 2


def test_a_box_beyond_the_canvas_is_cut_and_reported():
    region = parse_region("-0.5,0,0.5,2=a sksdog on grass", strength=0.5)
    assert torch.equal(region.mask(4, 4), Region("a", Box(0, 0, 0.5, 1)).mask(4, 4))
    assert describe_cut_boxes([region, Region("a", Box(0, 0, 1, 1))]) == [
        "The box -0.5,0,0.5,2 of the region 'a sksdog on grass' reaches beyond the canvas and is cut to 0,0,0.5,1."
    ]


def test_a_region_lists_its_concepts_in_brackets():
    region = parse_region("0,0,0.5,1=on grass [dog, cat:0.8]", feather=0.1)
    assert (region.prompt, region.concepts, region.feather) == ("on grass", (("dog", 1.0), ("cat", 0.8)), 0.1)
    assert parse_region("0,0,0.5,1=[dog]").concepts == (("dog", 1.0),)
    assert parse_region("0,0,0.5,1=a sksdog").concepts is None


def test_brackets_before_the_last_ones_belong_to_the_prompt():
    region = parse_region("0,0,0.5,1=a [red] hat on grass [dog]")
    assert (region.prompt, region.concepts) == ("a [red] hat on grass", (("dog", 1.0),))
    region = parse_region("0,0,0.5,1=a [red] hat on grass")
    assert (region.prompt, region.concepts) == ("a [red] hat on grass", None)


def test_regions_that_act_in_no_step_are_reported():
    late, early = parse_region("0,0,0.5,1=late", start=0.9), parse_region("0,0,0.5,1=early", end=0.1)
    [note] = describe_idle_regions([late, early], [step / 8 for step in range(8)])
    assert note.startswith("The region 'late' acts in no step")
    assert describe_idle_regions([late, early], [step / 20 for step in range(20)]) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a sksdog", "is not LEFT,TOP,RIGHT,BOTTOM=PROMPT"),
        ("0,0,1=a sksdog", "is not LEFT,TOP,RIGHT,BOTTOM=PROMPT"),
        ("0,0,half,1=a sksdog", "is not LEFT,TOP,RIGHT,BOTTOM=PROMPT"),
        ("0,0,nan,1=a sksdog", "four finite numbers"),
        ("0,0,0.5,1= ", "has no prompt"),
        ("0,0,0.5,1=[]", "has no prompt"),
        ("0,0,0.5,1=[dog] on grass", "must end the text"),
        ("0,0,0.5,1=[dog, dog:0.8]", "'dog' twice"),
        ("0,0,0.5,1=[dog:x]", "strength of 'dog' is not a number"),
        ("0.5,0,0.5,1=a sksdog", "is empty"),
        ("1.5,0,2,1=a sksdog", "outside the canvas"),
    ],
)
def test_a_malformed_region_is_refused_in_one_sentence(text, message):
    with pytest.raises(UserError, match=message):
        parse_region(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strength": 1.5}, "strength of the region 'a' must be between 0 and 1"),
        ({"start": 0.6, "end": 0.5}, "before it starts"),
        ({"start": 1.0}, "set a start below 1"),
        ({"area": torch.zeros(4, 4)}, "empty or not finite"),
        ({"area": torch.ones(1, 4, 4)}, "one image"),
        ({"area": torch.ones(4, 4), "feather": 0.1}, "set its feather to 0"),
    ],
)
def test_a_region_that_cannot_be_used_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        Region(**{"prompt": "a", "area": Box(0, 0, 1, 1), **changes})


def test_a_region_with_a_concept_that_is_not_selected_is_refused(base):
    region = Region("a", Box(0, 0, 1, 1), concepts=(("cat", 1.0),))
    with pytest.raises(UserError, match="has the concept 'cat', which is not selected"):
        confine([concept(base.layers, "dog", 1)], ("", "a sksdog"), count_words, 8, regions=[region])


def test_what_cannot_be_confined_and_what_does_nothing_is_reported(base):
    parts = [concept(base.layers, "dog", 1, "cross"), concept(base.layers, "cat", 2)]
    everywhere, nothing = sorted(confine(parts, ("", "a sksdog"), count_words, 8).notes, reverse=True)
    assert nothing == "No prompt names 'skscat' in its first 8 tokens: the concept 'cat' does nothing."
    assert "32 layers of 'dog'" in everywhere and "'cat'" not in everywhere


def test_a_region_has_the_negative_and_the_concepts_that_it_names(base):
    parts = [concept(base.layers, "dog", 1), concept(base.layers, "cat", 2)]
    whole = "a sksdog left of a skscat"
    regions = [
        Region(whole, Box(0, 0, 0.5, 1), concepts=(("dog", 0.5),), negative="skscat"),
        Region("a skscat", Box(0.5, 0, 1, 1)),
    ]
    made = confine(parts, ("blurry", whole), count_words, 9, regions=regions)
    assert made.texts == [("blurry", whole), ("skscat", whole), ("blurry", "a skscat")]
    dog, cat = made.text.unbind(-1)
    assert dog[1].unique().tolist() == [0.5] and dog[2].unique().tolist() == [0]
    assert cat[1].unique().tolist() == [0] and cat[2].unique().tolist() == pytest.approx([0.8])
    assert dog[0].tolist() == [[0] * 9, pytest.approx([0, 0, 0.8, *[0] * 6])]
    assert made.everywhere.tolist() == [0, 0] and made.notes == []
    own = confine(parts, ("blurry", whole), count_words, 9, regions=regions, own_words_in_regions=True)
    assert own.text[2, 1, :, 1].tolist() == pytest.approx([0, 0, 0.8, *[0] * 6])
    assert own.text[2, 0].abs().max() == 0


def test_regions_draw_in_half_precision(base_folder):
    half = load_base(str(base_folder), "cpu", "bfloat16")
    parts = [concept(half.layers, "dog", 1, "all")]
    draw = regional(half, "a sksdog", parts, [Region("a (sksdog:1.2)", Box(0, 0, 0.5, 1), feather=0.2)])
    assert len(draw(SETTINGS)) == 2
