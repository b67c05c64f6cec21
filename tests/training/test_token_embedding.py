"""The word of a concept: learned before its factors, on the base alone, within the run's passes."""

import pytest
import torch
from training_runs import StopAfter, captioned, equal, factors, learn, resolved, spec

from seqlora_core.bank import Bank, ConceptSpec
from seqlora_core.data.dataset import EncodedConcept
from seqlora_core.errors import Cancelled, UserError
from seqlora_core.model.sd15 import find_layers, layer_shapes
from seqlora_core.model.text_encoder import Vocabulary
from seqlora_core.training.config import TrainingConfig
from seqlora_core.training.methods import METHODS
from seqlora_core.training.token_embedding import NORM_SLACK, WordTraining
from seqlora_core.training.trainer import RunOptions, train_concept

WORD = {"token_vectors": 2, "token_share": 0.5, "steps": 6}


def learn_word(denoiser, bank, encoder, name="a", monitor=None, options=None, captions=(), **settings):
    config = resolved(**{**WORD, **settings})
    encode = captioned(encoder, spec(name), sum(map(ord, name)), captions)
    options = options or RunOptions()
    return train_concept(denoiser, encode, bank, spec(name), config, monitor, options, text_encoder=encoder)


@pytest.fixture
def other_bank(tmp_path, denoiser, base_identity) -> Bank:
    return Bank.open_or_create(tmp_path / "other", base_identity, layer_shapes(find_layers(denoiser.unet)))


def test_the_bank_keeps_the_word_and_calls_the_concept_by_it(denoiser, bank, text_encoder):
    concept = learn_word(denoiser, bank, text_encoder)
    words = Bank.open(bank.folder).words()
    assert concept.subject == "sksa"
    assert words["sksa"].shape == (2, 32)
    assert Bank.open(bank.folder).manifest.text_encoder == text_encoder.fingerprint()


def test_the_word_depends_neither_on_the_bank_nor_on_its_order(denoiser, bank, other_bank, text_encoder):
    learn_word(denoiser, bank, text_encoder, "a")
    learn_word(denoiser, bank, text_encoder, "b")
    learn_word(denoiser, other_bank, text_encoder, "b")
    assert torch.equal(bank.words()["sksb"], other_bank.words()["sksb"])


def test_the_text_encoder_stays_bit_for_bit_what_it_was(denoiser, bank, text_encoder):
    before = {name: weight.clone() for name, weight in text_encoder.model.state_dict().items()}
    learn_word(denoiser, bank, text_encoder)
    after = text_encoder.model.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    assert not any(parameter.requires_grad for parameter in text_encoder.model.parameters())


@pytest.mark.parametrize("stop", [2, 6, 8])
def test_a_run_stopped_in_either_phase_ends_at_the_same_tensors(denoiser, bank, other_bank, text_encoder, stop):
    learn_word(denoiser, bank, text_encoder)
    with pytest.raises(Cancelled):
        learn_word(denoiser, other_bank, text_encoder, monitor=StopAfter(stop))
    monitor = StopAfter(99)
    learn_word(denoiser, other_bank, text_encoder, monitor=monitor, options=RunOptions(resume=True))
    assert f"Resuming at step {stop} of 9." in monitor.messages
    assert torch.equal(bank.words()["sksa"], other_bank.words()["sksa"])
    assert equal(factors(bank, "a"), factors(other_bank, "a"))


def test_an_interrupted_step_of_the_word_is_undone(denoiser, bank, other_bank, text_encoder, monkeypatch):
    learn_word(denoiser, bank, text_encoder)
    step, done = WordTraining.step, []

    def interrupted(training):
        step(training)
        done.append(training)
        if len(done) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(WordTraining, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learn_word(denoiser, other_bank, text_encoder)
    monkeypatch.undo()
    monitor = StopAfter(99)
    learn_word(denoiser, other_bank, text_encoder, monitor=monitor, options=RunOptions(resume=True))
    assert "Resuming at step 2 of 9." in monitor.messages
    assert torch.equal(bank.words()["sksa"], other_bank.words()["sksa"])
    assert equal(factors(bank, "a"), factors(other_bank, "a"))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_word_and_factors_share_the_passes_of_a_run(denoiser, bank, text_encoder, share):
    with_word = learn_word(denoiser, bank, text_encoder, token_share=share, steps=10)
    assert with_word.metrics["passes"] == pytest.approx(20, abs=1)


@pytest.mark.parametrize(
    "settings",
    [
        *({"method": name} for name in METHODS),
        {"lower_step": "repeat", "inner_steps": 2},
        {"hypergradient": "finite-difference", "inner_steps": 2},
        {"hypergradient": "exact"},
        {"inner_steps": 3},
        {"method": "alternating", "inner_steps": 2},
    ],
)
def test_the_passes_of_a_step_are_as_many_as_a_method_says(denoiser, bank, settings):
    config = resolved(steps=2, **settings)
    concept = learn(denoiser, bank, "a", layers="cross-kv", steps=2, **settings)
    assert concept.metrics["passes"] == 2 * METHODS[config.method].passes(config)


def test_vectors_are_never_much_longer_than_those_of_the_vocabulary(denoiser, bank, text_encoder):
    learn_word(denoiser, bank, text_encoder, lr_token=5.0, steps=10)
    longest = Vocabulary.of(text_encoder.model.get_input_embeddings().weight).longest
    assert bank.words()["sksa"].norm(dim=1).max() <= NORM_SLACK * longest * (1 + 1e-5)


def test_learning_the_word_lowers_the_loss(denoiser, bank, text_encoder):
    concept = learn_word(denoiser, bank, text_encoder, steps=200, token_share=0.9, batch_size=2, method="lora")
    curve = concept.metrics["word_loss_curve"]
    assert sum(curve[-20:]) < sum(curve[:20])


def test_captions_without_the_token_are_refused_before_the_first_step(denoiser, bank, text_encoder):
    monitor = StopAfter(99)
    with pytest.raises(UserError, match="No caption contains the token 'sksa'"):
        learn_word(denoiser, bank, text_encoder, captions=("a dog", "a cat"), monitor=monitor)
    assert monitor.done == 0


def test_captions_may_name_the_token_in_some_images_only(denoiser, bank, text_encoder):
    learn_word(denoiser, bank, text_encoder, captions=("a SKSA, running", "a cat"), steps=8)
    assert "sksa" in bank.words()


def test_protected_prompts_and_captions_name_the_bank_s_words(denoiser, bank, text_encoder):
    learn_word(denoiser, bank, text_encoder, "a")
    asked = {}

    def encode(prompts, words):
        asked.update(prompts=prompts, words=words)
        return captioned(text_encoder, spec("b"))(prompts, words)

    train_concept(denoiser, encode, bank, spec("b"), resolved(**WORD), text_encoder=text_encoder)
    assert "photo of a sksa" in asked["prompts"]
    assert torch.equal(asked["words"]["sksa"], bank.words()["sksa"])


def test_without_vectors_a_concept_has_its_rare_word(denoiser, bank, text_encoder):
    concept = learn_word(denoiser, bank, text_encoder, token_vectors=0)
    assert (concept.subject, bank.words()) == ("sksa thing", {})


def test_a_multi_word_class_starts_the_word_too(denoiser, bank, text_encoder):
    own = ConceptSpec("bear", "sksbear", "teddy bear")
    config = resolved(token_vectors=1, token_share=0.0, steps=1)
    train_concept(denoiser, captioned(text_encoder, own), bank, own, config, text_encoder=text_encoder)
    assert torch.allclose(bank.words()["sksbear"][0], text_encoder.vectors_of("teddy bear").mean(0))


def test_a_concept_from_before_there_were_words_is_not_trained_again(denoiser, bank, text_encoder):
    from seqlora_core.training.config import OF_THE_WORD
    from seqlora_core.training.plan import already_trained

    old = learn_word(denoiser, bank, text_encoder, token_vectors=0)
    kept = {name: value for name, value in old.settings.items() if name not in OF_THE_WORD}
    concept = bank.manifest.find("a")
    object.__setattr__(concept, "settings", kept)
    assert already_trained(bank, spec("a"), resolved(**WORD), old.provenance.data) is not None


def test_an_open_number_of_vectors_is_decided_like_other_settings():
    assert resolved(token_vectors=None).token_vectors == 2
    assert TrainingConfig().learns_word
    with pytest.raises(UserError, match="lr_token must be a number above 0"):
        TrainingConfig(lr_token=0)


def test_another_text_encoder_is_refused(denoiser, bank, text_encoder, monkeypatch):
    learn_word(denoiser, bank, text_encoder, "a")
    monkeypatch.setattr(type(text_encoder), "fingerprint", lambda encoder: "0" * 32)
    with pytest.raises(UserError, match="learned with another text encoder"):
        learn_word(denoiser, bank, text_encoder, "b")


def test_prompts_are_encoded_again_once_each(text_encoder):
    data: EncodedConcept = captioned(text_encoder, spec("a"))((), {})
    asked = []

    def encode(texts):
        asked.extend(texts)
        return text_encoder.encode_all(texts)

    assert len(data.with_prompts(encode).examples) == len(data.examples)
    assert len(asked) == len(set(asked)) == 6
