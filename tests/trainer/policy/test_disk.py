"""What a full disk is called; a run on a disk that fills is an integration test."""

import errno

import pytest
import torch

from openrlhf_gpm.trainer.policy.disk import room, weights


def test_what_does_not_fit_is_not_begun(tmp_path):
    with pytest.raises(OSError, match="make space; go on") as said, room(tmp_path / "new", 10**18, "a model", "go on"):
        pytest.fail("it was begun")
    assert said.value.errno == errno.ENOSPC
    assert f"{tmp_path / 'new'}: the disk is full (" in str(said.value)
    assert "bytes free, and a model needs 1,000,000,000,000,000,000)" in str(said.value)


def test_a_write_that_fails_on_a_full_device_is_named(tmp_path):
    with (
        pytest.raises(OSError, match=f"{tmp_path}: the disk is full .a model, of 10 bytes, could not be written"),
        room(tmp_path, 10, "a model", "go on"),
        open("/dev/full", "wb") as full,
    ):
        full.write(b"x" * 10)


def test_other_errors_stay_as_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="a bug"), room(tmp_path, 10, "a model", "go on"):
        raise RuntimeError("a bug")
    with pytest.raises(FileNotFoundError), room(tmp_path, 10, "a model", "go on"):
        (tmp_path / "missing").read_bytes()


def test_trained_weights_and_the_bytes_of_all_are_counted():
    model = torch.nn.Linear(3, 2)
    assert weights(model) == (8, 32)
    model.bias.requires_grad_(False)  # as all but the adapters of LoRA
    assert weights(model.bfloat16()) == (6, 16)
