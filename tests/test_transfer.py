"""Reading checkpoints safely, copying weights, and refusing what does not fit."""

import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_pretrain.checkpoints.card import count_parameters
from nnunet_pretrain.checkpoints.reading import read_checkpoint
from nnunet_pretrain.transfer.weights import transfer_weights


class Net(nn.Module):
    """A body, heads as nnU-Net names them, and a second name for the same tensor."""

    def __init__(self, width=4, classes=3):
        super().__init__()
        self.encoder = nn.Conv3d(1, width, 3)
        self.decoder = nn.Module()
        self.decoder.encoder = self.encoder
        self.decoder.seg_layers = nn.ModuleList([nn.Conv3d(width, classes, 1)])


def transfer(target, weights, share=0.9):
    return transfer_weights(target, weights, "source.pth", "abc", share)


def test_body_is_copied_heads_are_not_and_every_tensor_is_reported_once():
    source, target = Net(classes=5), Net(classes=3)
    head = target.decoder.seg_layers[0].weight.clone()
    report = transfer(target, source.state_dict())
    assert torch.equal(target.encoder.weight, source.encoder.weight)
    assert torch.equal(target.decoder.seg_layers[0].weight, head)
    assert {t.name: t.status for t in report.tensors} == {
        "encoder.weight": "loaded",
        "encoder.bias": "loaded",
        "decoder.seg_layers.0.weight": "initialised",
        "decoder.seg_layers.0.bias": "initialised",
    }
    assert report.loaded_share == 1
    assert report.unused == ()


def test_too_little_to_load_is_refused_and_nothing_is_touched():
    target = Net(width=6)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    message = r"only 0.0% .*, expected at least 90%; first mismatches: encoder.weight: shape \(4, 1, 3, 3, 3\)"
    with pytest.raises(ValueError, match=message):
        transfer(target, Net(width=4).state_dict())
    with pytest.raises(ValueError, match="not in the checkpoint"):
        transfer(target, {f"module.{k}": v for k, v in Net(width=6).state_dict().items()})
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_parameters_with_two_names_count_once():
    assert count_parameters(Net().state_dict()) == 4 * 27 + 4 + 3 * 4 + 3


def checkpoint(**extra):
    return {"network_weights": {"w": torch.zeros(3)}, "init_args": {}, "trainer_name": "nnUNetTrainer", **extra}


def test_what_nnunet_writes_is_read(tmp_path):
    log = {"dice": [np.float64(0.5), [np.float32(0.25)]], "epoch": np.int64(3), "array": np.arange(3.0)}
    content = checkpoint(logging=log, _best_ema=np.float64(0.7), init_args={"device": torch.device("cuda", 0)})
    torch.save(content, tmp_path / "c.pth")
    read = read_checkpoint(tmp_path / "c.pth")
    assert read["logging"]["dice"] == [0.5, [0.25]]
    assert read["logging"]["array"].tolist() == [0, 1, 2]
    assert read["network_weights"]["w"].tolist() == [0, 0, 0]


class Payload:
    """Would make a folder if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, legacy):
    content = checkpoint(logging={"x": [Payload(tmp_path / "run")]})
    torch.save(content, tmp_path / "bad.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"bad.pth (was refused|is not readable)"):
        read_checkpoint(tmp_path / "bad.pth")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not readable|refused"),
        (b"PK\x03\x04 truncated", "not readable|refused"),
        (pickle.dumps({"a": 1}), "not readable|refused"),
        (None, "is no nnU-Net v2 checkpoint: it lacks"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "file.pth"
    torch.save({"a": 1}, path) if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(path)
    with pytest.raises(FileNotFoundError, match=r"missing.pth not found"):
        read_checkpoint(tmp_path / "missing.pth")


def test_other_channels_are_refused_and_other_names_are_mentioned():
    from nnunet_pretrain.transfer.plan_transfer import _check_channels

    said = []
    _check_channels("Dataset001_X", ("ct",), ("CT",), said.append)
    assert said == []
    _check_channels("Dataset001_X", ("T1",), ("CT",), said.append)
    assert "are called ['T1'], those of the checkpoint ['CT']" in said[0]
    with pytest.raises(ValueError, match=r"has the channels \['CT', 'PET'\], the checkpoint was trained with \['CT'\]"):
        _check_channels("Dataset001_X", ("CT", "PET"), ("CT",), said.append)
