"""The factors that a training keeps: their mean over the last steps."""

import pytest
import torch
from training_runs import encoded, random_concept, resolved

from seqlora_core.bank.spec import ConceptSpec
from seqlora_core.errors import UserError
from seqlora_core.monitor import Monitor
from seqlora_core.training.methods import METHODS
from seqlora_core.training.trainer import RunOptions, train_concept


@pytest.fixture
def learned(denoiser, bank):
    """(steps, settings) -> the adapters of one and the same concept, trained from the start each time."""

    def learn(steps: int, **settings):
        config = resolved(
            steps=steps, rank=2, layers="all", train_on="accumulated", lr_coefficients=1e-2, lr_basis=1e-2, **settings
        )
        train_concept(denoiser, encoded(random_concept(3)), bank, ConceptSpec("a", "sksa", "a"), config)
        adapters = bank.load([bank.concept("a")])["a"]
        bank.remove("a")
        return adapters

    return learn


@pytest.mark.parametrize(("share", "counted"), [(0.5, (3, 4)), (0.25, (4,)), (1.0, (1, 2, 3, 4)), (0.0, (4,))])
def test_a_concept_is_the_mean_of_what_its_last_steps_led_to(learned, share, counted):
    iterates = [learned(steps, average=0.0) for steps in counted]
    for layer, kept in learned(4, average=share).items():
        for factor in "AB":
            mean = torch.stack([getattr(iterate[layer], factor) for iterate in iterates]).mean(0)
            assert torch.allclose(getattr(kept, factor), mean, atol=1e-6), (layer, factor)


@pytest.mark.parametrize("method", METHODS)
def test_only_seqlora_averages_by_default(learned, method):
    by_default, last = learned(4, method=method), learned(4, method=method, average=0.0)
    same = all(torch.equal(by_default[layer].A, last[layer].A) for layer in last)
    assert same == (method != "seqlora")


def test_previews_show_what_would_be_kept(denoiser, bank):
    """At the last step of all, a mean over one step and no mean are the same, and one over all steps is not."""

    class Pictures(Monitor):
        def previewed(self, latents) -> None:
            self.last = latents

    def last_picture(share: float):
        config = resolved(steps=4, rank=2, layers="all", lr_coefficients=0.1, average=share)
        monitor, options = Pictures(), RunOptions(preview_every=4)
        train_concept(
            denoiser, encoded(random_concept(3)), bank, ConceptSpec("a", "sksa", "a"), config, monitor, options
        )
        bank.remove("a")
        return monitor.last

    assert torch.allclose(last_picture(0.25), last_picture(0.0), atol=1e-5)
    assert not torch.allclose(last_picture(1.0), last_picture(0.0), atol=1e-3)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_beyond_the_steps_is_refused(share):
    with pytest.raises(UserError, match="average"):
        resolved(average=share)
