"""Several processes that train one concept: what one process with the whole batch makes, and they end together."""

import os
import shutil
import socket
import subprocess
import sys

import process_of_several
import pytest
import torch
from training_runs import factors, random_concept, resolved

from seqlora_core.bank import Bank
from seqlora_core.errors import UserError
from seqlora_core.model.sd15 import find_layers, layer_shapes
from seqlora_core.monitor import Monitor
from seqlora_core.training.checkpoint import Checkpoint
from seqlora_core.training.distributed import ALONE, Processes
from seqlora_core.training.minibatches import draw_minibatches


@pytest.fixture(scope="module")
def banks(tmp_path_factory, base_identity):
    """A bank of one process and one of two, each with one concept of before; how the two ended."""
    folder = tmp_path_factory.mktemp("several")
    denoiser, encoder = process_of_several.base(folder / "base")
    one = Bank.open_or_create(folder / "one", base_identity, layer_shapes(find_layers(denoiser.unet)))
    process_of_several.train(denoiser, encoder, one, "first", Monitor(), ALONE)
    shutil.copytree(one.folder, folder / "two")
    two = Bank.open(folder / "two")
    with pytest.MonkeyPatch.context() as patch, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        launched = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        for name, value in {**launched, "RANK": "0"}.items():
            patch.setenv(name, value)
        free.close()
        command = [sys.executable, process_of_several.__file__, str(two.folder), str(folder / "other")]
        environment = {**os.environ, "RANK": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
        other = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        with pytest.raises(UserError) as error:
            process_of_several.run(denoiser, encoder, two)
        _, output = other.communicate(timeout=60)
    process_of_several.train(denoiser, encoder, one, "second", Monitor(), ALONE)
    return one, two.refresh(), (str(error.value), other.returncode, output)


def test_two_processes_make_what_one_makes_with_the_whole_batch(banks):
    one, two, ends = banks
    assert [concept.name for concept in two.concepts] == ["first", "second"], ends
    torch.testing.assert_close(two.words()["skssecond"], one.words()["skssecond"])
    alone, together = factors(one, "second"), factors(two, "second")
    assert alone.keys() == together.keys()
    for layer, adapter in alone.items():
        assert (together[layer].up - adapter.up).norm() < 1e-5 * adapter.up.norm()
        assert (together[layer].down - adapter.down).norm() < 1e-5 * adapter.down.norm()
    for curve in ("loss_curve", "word_loss_curve"):
        assert two.concept("second").metrics[curve] == pytest.approx(one.concept("second").metrics[curve], abs=2e-6)


def test_an_error_in_one_process_ends_all_and_the_first_keeps_the_steps(banks):
    _, two, (of_first, status, of_second) = banks
    assert of_first == "Process 2 of 2 has failed (OSError: its card is gone): see its traceback."
    assert status == 1
    assert "OSError: its card is gone" in of_second
    assert Checkpoint.load(two.checkpoint_path("third")).word_step == 1


@pytest.mark.parametrize("images", [1, 2, 5])
def test_the_shares_of_a_batch_add_up_to_its_error(denoiser, images):
    [whole] = draw_minibatches(random_concept(1), denoiser, resolved(batch_size=images), 0)
    masks = torch.rand_like(whole.mask)
    whole.mask.copy_(masks)
    prediction = torch.ones_like(whole.noise)
    shares = [whole.share(index, 3) for index in range(3)]
    total = sum(share.squared_error(prediction[: len(share.noise)]) for share in shares)
    torch.testing.assert_close(total, whole.squared_error(prediction))


def test_several_processes_refuse_one_card_for_all():
    with pytest.raises(UserError, match=r"has no device|cannot share"):
        Processes(0, 2).device("cuda:0")


@pytest.mark.parametrize(("rank", "count"), [("x", "2"), ("2", "2"), ("-1", "2"), ("0", "0")])
def test_an_environment_that_is_no_place_among_processes_is_refused(monkeypatch, rank, count):
    values = {"RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(UserError, match="unset them"):
        Processes.launched()
