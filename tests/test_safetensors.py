"""Checkpoints as safetensors: every bit and name comes back, no path of this machine goes along, damage is refused."""

import json
import struct
from functools import partial

import numpy as np
import pytest
import torch
from small_checkpoints import FINGERPRINTS, NETWORKS, checkpoint, no_path_of_this_machine, same_weights, save_as_trained

from nnunet_pretrain.checkpoints.card import card_of
from nnunet_pretrain.checkpoints.portable import without_aliases
from nnunet_pretrain.checkpoints.safetensors_file import is_safetensors, read_safetensors, write_safetensors
from nnunet_pretrain.transfer.export import export


@pytest.fixture
def saved(tmp_path):
    """Saves a checkpoint where nnU-Net would, and returns the file."""
    return partial(save_as_trained, tmp_path / "trained")


@pytest.mark.parametrize("network", NETWORKS)
def test_safetensors_bring_back_every_bit_and_name(network, saved, tmp_path):
    content = checkpoint(network)
    lines = export(saved(content), tmp_path / "model.safetensors")
    back = read_safetensors(tmp_path / "model.safetensors")
    assert same_weights(back["network_weights"], content["network_weights"])
    names = {id(tensor): name for name, tensor in back["network_weights"].items()}
    assert len(names) == len({t.data_ptr() for t in content["network_weights"].values()})
    assert back["trainer_name"] == "nnUNetTrainerPretrain"
    assert back["inference_allowed_mirroring_axes"] == (0, 1)
    assert back["current_epoch"] == 12
    assert back["init_args"]["configuration"] == "3d_fullres"
    assert back["init_args"]["fold"] == 0
    assert back["init_args"]["plans"]["configurations"] == content["init_args"]["plans"]["configurations"]
    assert back["init_args"]["nnunet_pretrain"]["card"]["fingerprints"] == FINGERPRINTS
    assert f"next: nnunet_pretrain plan_transfer -d TARGET -c {tmp_path / 'model.safetensors'}" in lines
    written = card_of(tmp_path / "model.safetensors", back)
    assert written.parameters == card_of(saved(content), content).parameters
    assert written.sources[0]["licence"] == "CC BY 4.0"


def test_a_second_export_changes_nothing(saved, tmp_path):
    export(saved(checkpoint()), tmp_path / "first.safetensors")
    export(tmp_path / "first.safetensors", tmp_path / "second.safetensors")
    assert header_of(tmp_path / "first.safetensors") == header_of(tmp_path / "second.safetensors")
    first, second = (read_safetensors(tmp_path / f"{name}.safetensors") for name in ("first", "second"))
    assert same_weights(first["network_weights"], second["network_weights"])
    assert list(first["network_weights"]) == list(second["network_weights"]) == list(checkpoint()["network_weights"])


def header_of(path):
    content = path.read_bytes()
    return json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])


def test_the_header_says_what_the_model_is_and_nothing_of_this_machine(saved, tmp_path):
    export(saved(checkpoint()), tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    assert is_safetensors(tmp_path / "model.safetensors")
    assert not is_safetensors(saved(checkpoint()))
    metadata = header_of(tmp_path / "model.safetensors")["__metadata__"]
    card = json.loads(metadata["card"])
    assert card["structures"] == {"background": 0, "liver": 1, "spleen": 2}
    assert card["fingerprints"] == 1
    assert json.loads(metadata["plans"])["nnunet_pretrain"]["transfer"]["checkpoint"] == "first.pth"
    assert "dataset" not in json.loads(metadata["dataset_json"])
    assert json.loads(metadata["dataset_json"])["label_schemes"]["BTCV"]["1"] == ["liver"]
    assert no_path_of_this_machine(content)


DTYPES = ("float64", "float32", "float16", "bfloat16", "complex64", "float8_e4m3fn", "float8_e5m2")
DTYPES += ("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool")


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_keeps_its_bits(dtype, tmp_path):
    content = checkpoint()
    kind = getattr(torch, dtype)
    drawn = torch.from_numpy(np.random.default_rng(0).integers(0, 256, 24 * kind.itemsize, np.uint8))
    odd = (
        (drawn % 2 if dtype == "bool" else drawn).view(kind).reshape(2, 3, 4)
    )  # NaN payloads, infinities, -0 among them
    content["network_weights"] |= {"odd": odd, "alias": odd, "view": odd[:, 1], "turned": odd.mT}
    content["network_weights"] |= {"scalar": odd[0, 0, 0], "empty": odd[:0], "also_empty": odd[:0]}
    write_safetensors(tmp_path / "model.safetensors", content)
    back = read_safetensors(tmp_path / "model.safetensors")["network_weights"]
    assert same_weights(back, content["network_weights"])
    assert back["alias"] is back["odd"]


def test_equal_values_are_no_aliases():
    ones = torch.ones(3)
    tensors, names = without_aliases({"a.all_modules.0.w": ones, "a.conv.w": ones, "b": torch.ones(3), "c": ones[:2]})
    assert sorted(tensors) == ["a.conv.w", "b", "c"]
    assert names == {"a.all_modules.0.w": "a.conv.w", "a.conv.w": "a.conv.w", "b": "b", "c": "c"}


@pytest.mark.parametrize("network", NETWORKS)
def test_encoder_only_leaves_out_decoder_and_heads(network, saved, tmp_path):
    content = checkpoint(network)
    export(saved(content), tmp_path / "encoder.safetensors", encoder_only=True)
    back = read_safetensors(tmp_path / "encoder.safetensors")
    prefixes = ("backbone.convInit.", "backbone.down_layers.") if network == "SegResNet" else ("encoder.",)
    expected = {n: t for n, t in content["network_weights"].items() if n.startswith(prefixes)}
    assert expected
    assert same_weights(back["network_weights"], expected)
    assert back["init_args"]["nnunet_pretrain"]["encoder_only"] is True


def rewritten(path, **metadata):
    """Changes a safetensors file's metadata; None removes an entry."""
    content = path.read_bytes()
    length, content_of = struct.unpack("<Q", content[:8])[0], header_of(path)
    content_of["__metadata__"] = {k: v for k, v in {**content_of["__metadata__"], **metadata}.items() if v is not None}
    text = json.dumps(content_of).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def test_truncated_files_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, checkpoint())
    content = path.read_bytes()
    for length in (0, 1, 8, 9, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"model\.safetensors is not readable as safetensors"):
            read_safetensors(path)
    with pytest.raises(FileNotFoundError, match="not found"):
        read_safetensors(tmp_path / "none.safetensors")


def header(shape, offsets):
    text = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 99_000_000) + b"{" * 1000,
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"\xff\xfe{}",
        header([2**40, 2**40], [0, 8]),
        header([2**62, 4], [0, 0]),
        header([2], [0, 2**60]),
        header([2], [4, 12]),
        header([-2], [0, 8]),
        b"PK\x03\x04" + bytes(100),
    ],
)
def test_hostile_headers_are_refused(content, tmp_path):
    (tmp_path / "hostile.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"hostile\.safetensors"):
        read_safetensors(tmp_path / "hostile.safetensors")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": None}, "no checkpoint of `nnunet_pretrain export`"),
        ({"format": "nnunet_pretrain 2"}, "its format is 'nnunet_pretrain 2'"),
        ({"plans": None}, "metadata lack .'plans'"),
        ({"plans": "{"}, "its plans are no JSON"),
        ({"plans": "[]"}, "its plans are of type list"),
        ({"plans": "[" * 100_000}, "its plans are no JSON"),
        ({"extras": "[" + "{}," * 2_000_000 + "{}]"}, "its extras have more than 1,000,000 values"),
        ({"names": '{"a": "nowhere"}'}, "tensors and their names do not belong together"),
        ({"names": '{"a": ["b"]}'}, "the name of a tensor is no text"),
        ({"current_epoch": '"many"'}, "its current_epoch are of type str"),
    ],
)
def test_hostile_metadata_are_refused(metadata, message, tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, checkpoint())
    rewritten(path, **metadata)
    with pytest.raises(ValueError, match=message):
        read_safetensors(path)
