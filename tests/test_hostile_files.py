"""Files that should do harm do none; what nnU-Net and we write is read as torch reads it."""

import json
import os
import pickle
import random
import re
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import hostile_files
import numpy as np
import pytest
import torch
from hostile_files import Hostile, corpus, payloads
from hostile_parts import Call, Entry, archive, checkpoint, entry_of_weights, saved, tensor, zipped
from torch import nn

from nnunet_pretrain.checkpoints.reading import read_checkpoint, read_file
from nnunet_pretrain.cli import main

MAX_GROWTH_MB = 300


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> tuple[Path, list[Hostile], dict]:
    """The corpus, read file by file in one process of its own."""
    folder = tmp_path_factory.mktemp("hostile")
    files = corpus(folder)
    (folder / "good.pth").write_bytes(saved(checkpoint()))
    for file in files:
        (folder / f"{file.name}.pth").write_bytes(file.data)
    command = [sys.executable, hostile_files.__file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, files, json.loads(done.stdout)


def test_every_hostile_file_is_refused_with_its_reason_on_one_line(outcomes):
    folder, files, found = outcomes
    assert len(files) == len({file.name for file in files}) > 100
    assert found.pop("good")["said"] == "read"
    assert set(found) == {file.name for file in files}
    for file in files:
        said = found[file.name]["said"]
        assert said.startswith(f"ValueError: {folder / file.name}.pth "), file.name
        assert re.search(file.says, said), f"{file.name}: {said}"
        assert said.isprintable(), file.name
        assert len(said) < 700, file.name


def test_hostile_files_run_nothing(outcomes):
    assert [path.name for path in outcomes[0].iterdir() if path.suffix != ".pth"] == []


def test_hostile_files_take_little_memory(outcomes):
    grown = {name: outcome["grown_mb"] for name, outcome in outcomes[2].items()}
    assert sum(grown.values()) < MAX_GROWTH_MB, max(grown.items(), key=lambda item: item[1])


def test_the_payloads_are_real(tmp_path):
    files = [file for file in payloads(tmp_path) if file.name.startswith("payload ")]
    for i, file in enumerate(files):
        path = tmp_path / f"{i}.pth"
        path.write_bytes(file.data)
        torch.load(path, weights_only=False)
        made = list(tmp_path.glob("ran-*"))
        assert made, f"{file.name} does nothing"
        for folder in made:
            folder.rmdir()


@pytest.mark.parametrize("name", ["payload eval", "billion laughs", "zip bomb", "cut at 50%", "weights in a list"])
def test_inspect_refuses_in_one_line(outcomes, name, capsys):
    path = outcomes[0] / f"{name}.pth"
    assert main(["inspect", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert str(path) in printed.err


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="it is a folder, a pipe or a device"):
        read_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none.pth not found"):
        read_file(tmp_path / "none.pth")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.pth")
        with pytest.raises(ValueError, match="it is a folder, a pipe or a device"):
            read_file(tmp_path / "pipe.pth")


def test_a_sidecar_that_would_run_code_is_refused(tmp_path):
    call = Call(os.mkdir, str(tmp_path / "ran"))
    for protocol in (2, 4):
        path = tmp_path / "model.model.pkl"
        path.write_bytes(pickle.dumps({"plans": {"a": [call]}}, protocol))
        with pytest.raises(ValueError, match=r"refused, nothing in it was run: it asks for (posix|nt)\.mkdir"):
            read_file(path)
    path.write_bytes(pickle.dumps(0) + pickle.dumps(call))
    with pytest.raises(ValueError, match="should end here"):
        read_file(path)
    path.write_bytes(archive(b"\x80\x02X\x05\x00\x00\x00helloQ."))
    with pytest.raises(ValueError, match="persistent id"):
        read_file(path)
    path.write_bytes(b"\x80\x02X\x05\x00\x00\x00helloQ.")
    with pytest.raises(ValueError, match="no torch checkpoint"):
        read_file(path)
    assert not (tmp_path / "ran").exists()


def test_damaged_files_are_read_or_refused(tmp_path):
    whole = saved(trained())
    start = whole.index(b"\x80\x02}")
    chance, read = random.Random(0), 0
    path = tmp_path / "damaged.pth"
    for i in range(400):
        damaged = bytearray(whole)
        places = range(start, start + 3_000) if i % 2 else range(len(whole))
        for place in chance.sample(places, 1 + i % 3):
            damaged[place] = chance.randrange(256)
        path.write_bytes(damaged[: chance.randrange(len(damaged))] if i % 10 == 0 else damaged)
        try:
            content = read_checkpoint(path)
        except ValueError:
            continue
        read += 1
        for weight in content["network_weights"].values():
            weight.clone()
    assert 0 < read < 300


def trained(optimizer: type = torch.optim.SGD, **arguments: object) -> dict:
    """A checkpoint with every kind of value that nnU-Net and our trainers save, after two steps of training."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.InstanceNorm3d(4, affine=True), nn.BatchNorm3d(4))
    trainer = optimizer(network.parameters(), lr=0.01, **arguments)
    for _ in range(2):
        network(torch.randn(2, 1, 5, 5, 5)).sum().backward()
        trainer.step()
    logging = {
        "dice_per_class_or_region": [[np.float64(0.5), np.float64("nan")], [np.float32(0.25), np.float16(0.5)]],
        "epochs": [np.int64(3), np.int32(-3), np.uint8(3), np.bool_(True), np.str_("Größe"), 1e-300, float("inf")],
        "array": np.arange(6.0).reshape(2, 3).T,
        "arrays": [np.zeros((0, 3), np.int16), np.array([True, False]), np.array(3, np.uint8)],
    }
    plans = {"patch_size": [8, 8], 1: (None, True, {}), "tuple": ((1, 2), [3, (4,)]), "big": 2**70, "ünïcode": "→\n"}
    device = torch.device("cuda", 0)
    return {
        "network_weights": network.state_dict(),
        "optimizer_state": trainer.state_dict(),
        "grad_scaler_state": torch.amp.GradScaler("cpu").state_dict(),
        "logging": logging,
        "_best_ema": np.float64(0.7),
        "current_epoch": 3,
        "init_args": {"plans": plans, "configuration": "3d", "fold": 0, "dataset_json": {}, "device": device},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
        "states": (random.Random(0).getstate(), torch.get_rng_state(), b"bytes\xff", torch.device("cpu")),
        "region": {(1, 2): True, (3,): False},
    }


def assert_same(found: object, expected: object, where: str = "") -> None:
    """Types, values and order are the same, all the way down; torch.Size and dtypes included."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key, value in [*expected.items(), *getattr(expected, "__dict__", {}).items()]:
            assert_same(found[key] if key in expected else vars(found)[key], value, f"{where}/{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for i, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{where}/{i}")
    elif isinstance(expected, torch.Tensor):
        assert (found.dtype, found.shape, found.stride()) == (expected.dtype, expected.shape, expected.stride()), where
        assert torch.equal(found, expected), where
    else:
        np.testing.assert_equal(found, expected, err_msg=where)
        assert getattr(found, "dtype", None) == getattr(expected, "dtype", None), where


@pytest.mark.parametrize(
    ("optimizer", "arguments"),
    [(torch.optim.SGD, {"momentum": 0.99, "nesterov": True}), (torch.optim.AdamW, {"amsgrad": True})],
)
@pytest.mark.parametrize("numpy_core", [b"numpy._core.", b"numpy.core."])
def test_what_is_saved_is_read_as_torch_reads_it(tmp_path, optimizer, arguments, numpy_core):
    path = tmp_path / "c.pth"
    torch.save(trained(optimizer, **arguments), path)
    expected = torch.load(path, weights_only=False, map_location="cpu")
    path.write_bytes(with_names_replaced(path, rb"numpy\._?core\.", numpy_core))
    read = read_checkpoint(path)
    assert_same(read, expected)
    assert read["network_weights"]._metadata[""] == {"version": 1}


def with_names_replaced(path: Path, pattern: bytes, name: bytes) -> bytes:
    """A torch archive with other names in its pickle, as another version of numpy writes them."""
    with zipfile.ZipFile(path) as file:
        entries = [(info.filename, file.read(info)) for info in file.infolist()]
    program = next(data for entry, data in entries if entry.endswith("/data.pkl"))
    changed = re.sub(pattern, name, program)
    assert name in changed
    renamed = [(entry, changed if data is program else data) for entry, data in entries]
    return zipped([Entry(entry, data) for entry, data in renamed])


def test_every_kind_of_tensor_is_read_as_torch_reads_it(tmp_path):
    dtypes = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"]
    whole = torch.arange(24.0).reshape(2, 3, 4)
    content = {
        **{name: torch.arange(5).to(getattr(torch, name)) for name in dtypes},
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "empty with room": torch.zeros(3)[:0],
        "whole": whole,
        "part": whole[1, :, 1:3],
        "turned": whole.permute(2, 0, 1),
        "last": torch.zeros(2, 1, 3, 4, 5).to(memory_format=torch.channels_last_3d),
        "dtype": torch.float16,
        "size": torch.Size((2, 3)),
        "ordered": OrderedDict(a=1),
    }
    torch.save(content, tmp_path / "t.pth")
    read = read_file(tmp_path / "t.pth")
    assert_same(read, torch.load(tmp_path / "t.pth", weights_only=False))
    whole_storage, part_storage = (read[key].untyped_storage() for key in ("whole", "part"))
    assert whole_storage.data_ptr() == part_storage.data_ptr()
    assert whole_storage.nbytes() == 96
    torch.save(read["part"], tmp_path / "again.pth")
    assert torch.equal(torch.load(tmp_path / "again.pth"), content["part"])


def test_parameters_are_read_as_tensors(tmp_path):
    torch.save({"w": nn.Parameter(torch.ones(2)), "v": torch.ones(2, requires_grad=True)}, tmp_path / "p.pth")
    read = read_file(tmp_path / "p.pth")
    assert [type(value) for value in read.values()] == [torch.Tensor, torch.Tensor]
    assert not any(value.requires_grad for value in read.values())


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_sidecars_of_nnunet_v1_are_read(tmp_path, protocol):
    stage = {"batch_size": 2, "patch_size": np.array([96, 192, 192]), "current_spacing": np.array([3.0, 1.5, 1.5])}
    statistics = OrderedDict({0: OrderedDict(mean=np.float32(80.5), percentile_99_5=np.float64(300))})
    plans = {
        "plans_per_stage": {
            0: {**stage, "pool_op_kernel_sizes": [[1, 2, 2], [2, 2, 2]], "do_dummy_2D_data_aug": False}
        },
        "dataset_properties": {"intensityproperties": statistics, "all_sizes": [(98, 512, 512)]},
        "keep_only_largest_region": OrderedDict({(1, 2): True}),
        "normalization_schemes": OrderedDict({0: "CT"}),
        "transpose_forward": np.array([0, 1, 2]),
    }
    init = ("plans.pkl", 0, "out", None, True, 0, True, False, True)
    sidecar = {"init": init, "name": "nnUNetTrainerV2", "class": "<class 'nnUNetTrainerV2'>", "plans": plans}
    path = tmp_path / "model_final_checkpoint.model.pkl"
    path.write_bytes(pickle.dumps(sidecar, protocol))
    assert_same(read_file(path), sidecar)


def test_the_file_stays_as_it_is_and_may_be_replaced_while_it_is_used(tmp_path):
    path = tmp_path / "c.pth"
    path.write_bytes(saved(checkpoint()))
    before = path.read_bytes()
    weights = read_checkpoint(path)["network_weights"]
    (tmp_path / "new.pth").write_bytes(saved({"a": torch.full((99,), 7.0)}))
    weights["w"][0] = 5
    assert path.read_bytes() == before
    (tmp_path / "new.pth").replace(path)
    assert weights["w"].tolist() == [5, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("padding", range(9))
def test_storages_at_odd_places_are_read(tmp_path, padding):
    program = entry_of_weights(tensor(0, (16,), (1,)))
    values = np.arange(16, dtype=np.float32).tobytes()
    entries = [("data.pkl", program), ("version", bytes(padding)), ("data/0", values)]
    path = tmp_path / "odd.pth"
    path.write_bytes(zipped([Entry(f"a/{name}", data) for name, data in entries]))
    read = read_file(path)["x"]
    assert read.tolist() == list(range(16))
    assert read.data_ptr() % 8 == 0
