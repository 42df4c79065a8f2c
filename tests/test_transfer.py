"""Reading checkpoints safely, and what a target's plans take from one."""

import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_pretrain.checkpoints.card import count_parameters
from nnunet_pretrain.checkpoints.reading import read_checkpoint


def test_parameters_with_two_names_count_once():
    network = nn.Module()
    network.encoder = nn.Conv3d(1, 4, 3)
    network.decoder = nn.Module()
    network.decoder.encoder = network.encoder
    assert len(network.state_dict()) == 4
    assert count_parameters(network.state_dict()) == 4 * 27 + 4


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


def intensities(target, pretrained, schemes=("CTNormalization",)):
    """Gives the target channels the checkpoint's numbers where it has them; returns plans' entries and the notes."""
    from nnunet_pretrain.transfer.target_plans import keep_intensities

    configuration = {"normalization_schemes": list(schemes), "use_mask_for_norm": [False] * len(schemes)}
    plans = {
        "configurations": {"3d_fullres": configuration},
        "foreground_intensity_properties_per_channel": {str(i): f"pretrained {i}" for i in range(len(schemes))},
    }
    dataset_json = {"channel_names": {str(i): channel for i, channel in enumerate(target)}}
    own = {"foreground_intensity_properties_per_channel": {str(i): f"own {i}" for i in range(len(target))}}
    notes = keep_intensities(plans, "3d_fullres", pretrained, dataset_json, own)
    return configuration["normalization_schemes"], plans["foreground_intensity_properties_per_channel"], notes


def test_channels_of_the_checkpoint_are_normalised_as_there_and_new_ones_by_their_own_numbers():
    assert intensities(("ct",), ("CT",)) == (["CTNormalization"], {"0": "pretrained 0"}, [])
    schemes, numbers, notes = intensities(("T1",), ("CT",))
    assert (schemes, numbers) == (["CTNormalization"], {"0": "pretrained 0"})
    assert notes == ["channel 'T1' is taken to be 'CT', and normalised as that"]
    schemes, numbers, notes = intensities(("PET", "CT"), ("CT",))
    assert (schemes, numbers) == (["ZScoreNormalization", "CTNormalization"], {"0": "own 0", "1": "pretrained 0"})
    assert notes == ["channel 'PET' is unknown to the checkpoint, it is normalised by the target's own numbers"]
    assert intensities(("b",), ("a", "b"), ("X", "Y"))[:2] == (["Y"], {"0": "pretrained 1"})
