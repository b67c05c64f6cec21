"""The text encoder with and without learned words."""

import pytest
import torch

from seqlora_core.errors import UserError
from seqlora_core.model.text_encoder import text_fingerprint

PROMPTS = ["photo of a sksdog, on a beach", "", "a " * 100]


def vectors(seed: int = 0, count: int = 2, width: int = 32) -> torch.Tensor:
    return 0.1 * torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_without_words_prompts_are_encoded_as_the_tokenizer_has_them(text_encoder):
    ids = text_encoder.tokenizer(
        PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    assert torch.equal(text_encoder.encode(PROMPTS), text_encoder.model(ids)[0])


def test_a_word_of_the_vocabulary_s_own_vectors_changes_nothing(text_encoder):
    words = {"dog": text_encoder.vectors_of("dog")}
    assert torch.allclose(text_encoder.encode(["a dog runs"], words), text_encoder.encode(["a dog runs"]), atol=1e-6)


def test_gradients_reach_the_vectors_and_are_those_of_a_difference(text_encoder):
    point, direction = vectors().double().requires_grad_(), vectors(1).double()
    model = text_encoder.model.double()
    try:

        def value(v: torch.Tensor) -> torch.Tensor:
            weights = torch.linspace(-1, 1, 77 * 32).view(1, 77, 32)
            return (weights * text_encoder.encode(["a sksdog here"], {"sksdog": v})).sum().double()

        (gradient,) = torch.autograd.grad(value(point), point)
        step = 1e-2
        with torch.no_grad():
            slope = (value(point + step * direction) - value(point - step * direction)) / (2 * step)
    finally:
        model.float()
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=0.03)


def test_words_that_do_not_fit_into_a_prompt_are_cut_as_text_is(text_encoder):
    room = 75 - text_encoder.count_tokens("a " * 74) + 2
    whole, cut = vectors(count=room), vectors(count=room + 3)
    cut[:room] = whole
    prompt = "a " * 74 + "sksdog and more"
    assert torch.equal(text_encoder.encode([prompt], {"sksdog": whole}), text_encoder.encode([prompt], {"sksdog": cut}))


def test_a_word_of_another_width_is_refused(text_encoder):
    with pytest.raises(UserError, match="vectors of 64 numbers, but this text encoder takes 32"):
        text_encoder.encode(["sksdog"], {"sksdog": vectors(width=64)})


def test_a_weight_scales_what_the_words_add_to_the_empty_prompt(text_encoder):
    plain, empty = text_encoder.encode_all(["a sksdog here", ""], {"sksdog": vectors()})
    weighted = text_encoder.encode_weighted("a (sksdog:1.5) here", {"sksdog": vectors()})
    factors = torch.ones(77, 1)
    factors[2:4] = 1.5  # after the start token and "a"
    assert torch.allclose(weighted, empty + factors * (plain - empty), atol=1e-6)


def test_the_fingerprint_is_that_of_the_same_weights_in_another_program(text_encoder):
    own = text_encoder.model.state_dict()
    others = {f"clip_l.transformer.text_model.{name}": weight.clone() for name, weight in own.items()}
    assert text_fingerprint(others) == text_encoder.fingerprint()
    others["clip_l.transformer.text_model.embeddings.token_embedding.weight"] += 1
    assert text_fingerprint(others) != text_encoder.fingerprint()
