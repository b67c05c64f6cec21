"""Concepts that are trained on their own words alone: on which tokens, and what other concepts have to do with it."""

import pytest
import torch
from training_runs import captioned, equal, factors, resolved, spec

from seqlora_core.bank import Bank
from seqlora_core.composition.selection import describe_trained_on_own_words
from seqlora_core.errors import UserError
from seqlora_core.model.sd15 import find_layers, layer_shapes
from seqlora_core.training.config import TrainingConfig
from seqlora_core.training.own_rows import mark_own_rows
from seqlora_core.training.trainer import RunOptions, train_concept


def learn(denoiser, bank, encoder, name, captions=(), **settings):
    config = resolved(**{"acts_on": "own-words", "method": "lora", "layers": "cross-kv", "lr_basis": 1e-2, **settings})
    encode = captioned(encoder, spec(name), sum(map(ord, name)), captions)
    return train_concept(denoiser, encode, bank, spec(name), config, options=RunOptions(), text_encoder=encoder)


@pytest.fixture
def other_bank(tmp_path, denoiser, base_identity) -> Bank:
    return Bank.open_or_create(tmp_path / "other", base_identity, layer_shapes(find_layers(denoiser.unet)))


def test_concepts_on_their_own_words_do_not_depend_on_each_other(denoiser, bank, other_bank, text_encoder):
    learn(denoiser, bank, text_encoder, "a", token_vectors=2)
    learn(denoiser, bank, text_encoder, "b", token_vectors=2)
    learn(denoiser, other_bank, text_encoder, "b", token_vectors=2)
    assert equal(factors(bank, "b"), factors(other_bank, "b"))


def test_training_on_own_words_is_another_one(denoiser, bank, other_bank, text_encoder):
    learn(denoiser, bank, text_encoder, "a", token_vectors=1)
    learn(denoiser, other_bank, text_encoder, "a", token_vectors=1, acts_on="everything")
    assert torch.equal(bank.words()["sksa"], other_bank.words()["sksa"])
    assert not equal(factors(bank, "a"), factors(other_bank, "a"))


def test_the_marked_rows_are_the_tokens_of_the_word(text_encoder):
    words, config = {"sksa": torch.zeros(2, 32)}, resolved(token_vectors=2, acts_on="own-words")
    data = captioned(text_encoder, spec("a"), captions=("a sksa", "sksa here", "nothing"))([], words)
    marked = mark_own_rows(data, spec("a"), config, text_encoder, words)
    first = text_encoder.count_tokens("a ", words) - 1
    places = [rows.nonzero().flatten().tolist() for rows in marked.examples[0].own_rows]
    assert places == [
        [first, first + 1],
        [1, 2],
        [],
    ]


def test_captions_without_the_words_for_the_concept_are_refused(denoiser, bank, text_encoder):
    with pytest.raises(UserError, match="No caption contains 'sksa thing'"):
        learn(denoiser, bank, text_encoder, "a", captions=("a sksa",))
    assert not bank.concepts


@pytest.mark.parametrize("setting", [{"train_on": "alternate"}, {"interference_penalty": 0.1}])
def test_settings_about_other_concepts_are_refused_on_own_words(setting):
    with pytest.raises(UserError, match=f"{next(iter(setting))} must be"):
        TrainingConfig(acts_on="own-words", **setting)


def test_summing_concepts_of_own_words_is_reported(denoiser, bank, text_encoder):
    learn(denoiser, bank, text_encoder, "a", token_vectors=1)
    learn(denoiser, bank, text_encoder, "b", token_vectors=1, acts_on="everything")
    (note,) = describe_trained_on_own_words(bank, [("a", 1.0), ("b", 1.0)])
    assert note.endswith("they change the rest, too: a.")
