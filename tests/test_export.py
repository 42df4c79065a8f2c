"""Export: nothing is lost, replaced unasked or promised wrongly, and stock nnU-Net predicts the same."""

import json
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from foreign_networks import GenericUNet, nnssl_checkpoint, randomised, v1_model
from nnunet_runs import run, script
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from small_checkpoints import (
    DYNAMIC,
    NETWORKS,
    bits,
    checkpoint,
    no_path_of_this_machine,
    same_weights,
    save_as_trained,
)

from nnunet_pretrain.checkpoints.pretrained import read_pretrained
from nnunet_pretrain.transfer.export import export


@pytest.fixture
def saved(tmp_path):
    """Saves a checkpoint where nnU-Net would, and returns the file."""
    return partial(save_as_trained, tmp_path / "trained")


@pytest.mark.parametrize("name", ["model.safetensors", "model.zip", "model.pth"])
def test_nothing_is_replaced_unasked_and_nothing_half_written_stays(name, saved, tmp_path):
    form = "nnssl" if name.endswith(".pth") else None
    source, output = saved(checkpoint()), tmp_path / "out" / name
    export(source, output, form=form)
    before = output.read_bytes()
    with pytest.raises(ValueError, match=r"is there already.*--overwrite"):
        export(source, output, form=form)
    damaged = checkpoint()
    damaged["init_args"]["plans"]["other"] = torch.device("cpu")
    with pytest.raises(ValueError, match="of type device cannot be exported"):
        export(saved(damaged), output, form=form, overwrite=True)
    assert output.read_bytes() == before
    assert list(output.parent.iterdir()) == [output]
    other = checkpoint()
    other["current_epoch"] = 13
    other["network_weights"]["encoder.stages.0.0.convs.0.conv.bias"] += 1
    export(saved(other), output, form=form, overwrite=True)
    assert output.read_bytes() != before


MODEL = "Dataset007_Tiny/nnUNetTrainer__nnUNetPretrainPlans__3d_fullres"


def test_a_model_folder_is_what_nnunet_leaves_without_state_of_training(saved, tmp_path):
    content = checkpoint()
    source = saved(content)
    (source.parent.parent / "dataset_fingerprint.json").write_text('{"spacings": [[3, 1, 1]]}', encoding="utf-8")
    (source.parent / "validation").mkdir()
    summary = {"metric_per_case": [{"prediction_file": "/home/someone/a.nii.gz"}]}
    (source.parent / "validation/summary.json").write_text(json.dumps(summary), encoding="utf-8")
    lines = export(source, tmp_path / "results")
    model = tmp_path / "results" / MODEL
    files = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    stock = {"plans.json", "dataset.json", "dataset_fingerprint.json", "fold_0/checkpoint_final.pth"}
    assert files == stock | {"fold_0/validation/summary.json"}
    assert all(no_path_of_this_machine((model / file).read_bytes()) for file in files)
    written = torch.load(model / "fold_0/checkpoint_final.pth", weights_only=True)
    assert written["trainer_name"] == "nnUNetTrainer"
    assert written["inference_allowed_mirroring_axes"] == (0, 1)
    assert "optimizer_state" not in written
    assert same_weights(written["network_weights"], content["network_weights"])
    assert list(written["network_weights"]) == list(content["network_weights"])
    assert list((tmp_path / "results").iterdir()) == [tmp_path / "results/Dataset007_Tiny"]
    assert any("without the optimiser's state" in line for line in lines)
    assert not any("installed" in line for line in lines)


def test_further_folds_go_beside_and_another_model_does_not(saved, tmp_path):
    results = tmp_path / "results"
    export(saved(checkpoint()), results)
    export(saved(checkpoint(fold=3)), results)
    assert sorted(path.name for path in (results / MODEL).glob("fold_*")) == ["fold_0", "fold_3"]
    with pytest.raises(ValueError, match="fold_3 is there already"):
        export(saved(checkpoint(fold=3)), results)
    changed = checkpoint(fold=3)
    changed["network_weights"]["encoder.stages.0.0.convs.0.conv.bias"] += 1
    export(saved(changed), results, overwrite=True)
    written = torch.load(results / MODEL / "fold_3/checkpoint_final.pth", weights_only=True)
    assert same_weights(written["network_weights"], changed["network_weights"])
    assert sorted(path.name for path in (results / MODEL).glob("*_*")) == ["fold_0", "fold_3"]
    other = checkpoint(fold=1)
    other["init_args"]["plans"]["configurations"]["3d_fullres"]["spacing"] = [2.0, 2.0, 2.0]
    with pytest.raises(ValueError, match=r"another model lies in.*plans\.json differs"):
        export(saved(other), results)


def test_a_network_that_is_not_nnunets_is_said_to_need_its_packages(saved, tmp_path):
    lines = export(saved(checkpoint("SegResNet")), tmp_path / "model.zip")
    assert any("prediction needs monai and nnunet_pretrain installed" in line for line in lines)


def changed_plans(**changes):
    content = checkpoint()
    content["init_args"]["plans"]["configurations"]["3d_fullres"].update(changes)
    return content


def renamed(**names):
    content = checkpoint()
    content["init_args"]["plans"].update(names)
    return content


def other_trainer(name):
    content = checkpoint()
    content["trainer_name"] = name
    return content


def without_statistics():
    content = checkpoint()
    content["init_args"]["plans"]["foreground_intensity_properties_per_channel"]["0"]["mean"] = None
    return content


def lacking_a_tensor():
    content = checkpoint()
    del content["network_weights"]["decoder.seg_layers.0.weight"]
    return content


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (checkpoint, {"encoder_only": True}, "without decoder cannot predict"),
        (checkpoint, {"trainer": "nnUNetTrainerNobodyKnows"}, "there is no trainer 'nnUNetTrainerNobodyKnows'"),
        (
            checkpoint,
            {"trainer": "nnUNetTrainerBN"},
            "nnUNetTrainerBN builds another network.*--trainer nnUNetTrainerP",
        ),
        (lambda: other_trainer("nnUNetTrainerBN"), {}, "nnUNetTrainerBN builds another network than nnUNetTrainer"),
        (lacking_a_tensor, {}, "1 tensors differ: decoder.seg_layers.0.weight: missing in the file"),
        (lambda: changed_plans(spacing=None), {}, "does not know: spacing"),
        (lambda: changed_plans(spacing=[None] * 3), {}, "does not know: spacing"),
        (without_statistics, {}, "does not know: mean of channel 0"),
        (lambda: renamed(dataset_name="../../outside"), {}, "is no name of a folder"),
        (lambda: renamed(dataset_name=".."), {}, "is no name of a folder"),
        (lambda: renamed(plans_name="a/b"), {}, "is no name of a folder"),
        (lambda: checkpoint(fold="x"), {}, "expected a number or 'all'"),
    ],
)
def test_a_model_stock_prediction_could_not_use_is_refused(make, options, message, saved, tmp_path):
    for output in ("results", "model.zip"):
        with pytest.raises(ValueError, match=message):
            export(saved(make()), tmp_path / output, **options)
        assert not (tmp_path / output).exists() or not any((tmp_path / output).rglob("*"))
    assert not (tmp_path.parent / "outside").exists()


def test_the_kind_of_output_follows_its_name(saved, tmp_path):
    with pytest.raises(ValueError, match=r"a \.pth file is written with --nnssl only"):
        export(saved(checkpoint()), tmp_path / "model.pth")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        export(saved(checkpoint()), tmp_path / "file")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(ValueError, match="is a folder; name a file"):
        export(saved(checkpoint()), tmp_path / "folder.safetensors", overwrite=True)


def hostile(**arguments):
    content = checkpoint()
    content["init_args"]["plans"]["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(arguments)
    return content


def test_a_network_that_names_a_function_is_never_built(saved, tmp_path):
    touched = tmp_path / "touched"
    for path in ("pathlib.Path", "os.mkdir", "torch.nn.functional.relu"):
        content = hostile(nonlin=path, nonlin_kwargs={"path": str(touched)})
        with pytest.raises(ValueError, match=path):
            export(saved(content), tmp_path / "encoder.safetensors", encoder_only=True)
    lines = export(saved(hostile(nonlin="os.mkdir", nonlin_kwargs={"path": str(touched)})), tmp_path / "results")
    assert any("not checked" in line and "os.mkdir" in line for line in lines)
    assert not touched.exists()


@pytest.mark.parametrize("encoder_only", [False, True])
@pytest.mark.parametrize("network", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_nnunets_own_finetuning_finds_encoder_and_stem(network, encoder_only, saved, tmp_path):
    """What nnU-Net's master does with such a file: read it restricted, build the network, load two submodules."""
    content = checkpoint(network)
    lines = export(saved(content), tmp_path / "model.pth", form="nnssl", encoder_only=encoder_only)
    written = torch.load(tmp_path / "model.pth", weights_only=True)
    plan, weights = written["nnssl_adaptation_plan"], written["network_weights"]
    architecture = plan["architecture_plans"]
    assert architecture["arch_class_name"] == network
    target = get_network_from_plans(
        f"{DYNAMIC}{network}", architecture["arch_kwargs"], architecture["arch_kwargs_requiring_import"], 1, 5
    )
    for key in (plan["key_to_encoder"], plan["key_to_stem"]):
        part = {n.removeprefix(f"{key}."): t for n, t in weights.items() if n.startswith(f"{key}.")}
        target.get_submodule(key).load_state_dict(part)
    loaded = {n: t for n, t in target.state_dict().items() if n.startswith("encoder.")}
    assert same_weights(loaded, {n: t for n, t in content["network_weights"].items() if n.startswith("encoder.")})
    assert (plan["key_to_encoder"], plan["key_to_stem"]) == (target.key_to_encoder, target.key_to_stem)
    assert set(plan["keys_to_in_proj"]) == set(target.keys_to_in_proj)
    assert all(n.startswith("encoder.") for n in weights) is encoder_only
    first = next(iter(plan["pretrain_plan"]["configurations"].values()))
    assert (first["spacing"], first["patch_size"]) == ([3.0, 1.0, 1.0], [16, 16, 16])
    assert plan["pretrain_num_input_channels"] == 1
    assert "key_to_lpe" in plan
    assert {"type", "name", "apa_citations"} <= set(written["citations"][0])
    assert [c["name"] for c in written["citations"]] == ["nnU-Net", "BTCV"]
    assert any("CTNormalization" in line for line in lines)
    assert no_path_of_this_machine((tmp_path / "model.pth").read_bytes())


@pytest.mark.parametrize("key", ["configurations", "dataset_name"])
def test_plans_that_are_not_whole_are_refused(key, saved, tmp_path):
    content = checkpoint()
    del content["init_args"]["plans"][key]
    for output in ("model.safetensors", "results"):
        with pytest.raises(ValueError, match=f"could not be exported .KeyError: '{key}'.; either its plans"):
            export(saved(content), tmp_path / output)


def test_nnssl_has_no_name_for_other_networks(saved, tmp_path):
    with pytest.raises(ValueError, match="nnssl's plans name PlainConvUNet or ResidualEncoderUNet"):
        export(saved(checkpoint("SegResNet")), tmp_path / "model.pth", form="nnssl")
    assert not (tmp_path / "model.pth").exists()


FOREIGN = {
    "nnU-Net v1": lambda: v1_model(
        randomised(GenericUNet(1, 3, [4, 6, 8], [[2, 2, 2]] * 2, [[3, 3, 3]] * 3)).state_dict()
    ),
    "nnssl": lambda: nnssl_checkpoint(checkpoint()["network_weights"], "PlainConvUNet", *NETWORKS["PlainConvUNet"][1:]),
}


@pytest.mark.parametrize("origin", FOREIGN)
def test_a_converted_file_keeps_its_origin_and_what_it_does_not_know(origin, tmp_path):
    source = tmp_path / "foreign.model"
    torch.save(FOREIGN[origin](), source)
    lines = export(source, tmp_path / "model.safetensors")
    content, back = read_pretrained(source), read_pretrained(tmp_path / "model.safetensors")
    assert same_weights(back["network_weights"], content["network_weights"])
    record = back["init_args"]["nnunet_pretrain"]["origin"]
    assert record == content["init_args"]["nnunet_pretrain"]["origin"]
    assert lines[-2:] == [
        f"converted from {record['format']}",
        f"not known from that file: {', '.join(record['unknown'])}",
    ]
    with pytest.raises(ValueError, match=r"a model folder must say how images are preprocessed.*: spacing"):
        export(source, tmp_path / "results")


def test_a_patch_nobody_knows_is_not_recommended(tmp_path):
    torch.save(FOREIGN["nnU-Net v1"](), tmp_path / "foreign.model")
    with pytest.raises(ValueError, match="recommend a patch, which the checkpoint does not know"):
        export(tmp_path / "foreign.model", tmp_path / "model.pth", form="nnssl")


@pytest.mark.parametrize("network", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_an_nnssl_export_is_read_back_as_nnssl(network, saved, tmp_path):
    content = checkpoint(network)
    export(saved(content), tmp_path / "model.pth", form="nnssl", encoder_only=True)
    back = read_pretrained(tmp_path / "model.pth")
    for name, tensor in content["network_weights"].items():
        if name.startswith("encoder."):
            assert bits(back["network_weights"][name]) == bits(tensor)
    assert back["init_args"]["nnunet_pretrain"]["origin"]["format"] == "nnssl"


REFUSING = """
import sys

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "nnunet_pretrain":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refusing())
"""


@pytest.fixture
def stock(tmp_path):
    """An environment in which nnunet_pretrain cannot be imported, as on the machine of someone without it."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(REFUSING, encoding="utf-8")
    folders = {name: str(tmp_path / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    environment = {**folders, "PYTHONPATH": str(tmp_path / "site"), "nnUNet_extTrainer": ""}
    with pytest.raises(AssertionError, match="No module named 'nnunet_pretrain'"):
        run([script("python"), "-c", "import nnunet_pretrain"], environment)
    return environment


def predict(pretrained, model, output, environment):
    """Predicts the target's test image with a model folder and returns labels and probabilities."""
    images = pretrained.root / "nnUNet_raw/Dataset901_Target/imagesTs"
    command = [script("nnUNetv2_predict_from_modelfolder"), "-i", images, "-o", output, "-m", model, "-f", "all"]
    run([*command, "-device", "cpu", "-npp", "1", "-nps", "1", "--save_probabilities"], environment)
    return np.load(next(output.glob("*.npz")))["probabilities"], next(output.glob("*.nii.gz")).read_bytes()


@pytest.mark.slow
def test_stock_nnunet_predicts_the_same_without_this_package(pretrained, stock, tmp_path):
    expected = predict(pretrained, pretrained.model, tmp_path / "before", pretrained.environment)
    assert np.ptp(expected[0]) > 0
    export(pretrained.checkpoint, tmp_path / "folder")
    model = "Dataset900_Merged/nnUNetTrainer__nnUNetPretrainPlans__3d_fullres"
    from_folder = predict(pretrained, tmp_path / "folder" / model, tmp_path / "after", stock)
    export(pretrained.checkpoint, tmp_path / "model.safetensors")
    export(tmp_path / "model.safetensors", tmp_path / "model.zip")  # by way of safetensors
    run([script("nnUNetv2_install_pretrained_model_from_zip"), tmp_path / "model.zip"], stock)
    from_zip = predict(pretrained, tmp_path / "nnUNet_results" / model, tmp_path / "installed", stock)
    for found in (from_folder, from_zip):
        assert np.array_equal(found[0], expected[0])
        assert found[1] == expected[1]
    size = pretrained.checkpoint.stat().st_size
    assert (tmp_path / "folder" / model / "fold_all/checkpoint_final.pth").stat().st_size < 0.6 * size


def test_the_zip_holds_the_layout_of_nnunet_results(saved, tmp_path):
    export(saved(checkpoint(fold="all")), tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as zipped:
        assert set(zipped.namelist()) == {
            f"{MODEL}/plans.json",
            f"{MODEL}/dataset.json",
            f"{MODEL}/fold_all/checkpoint_final.pth",
        }
        assert {entry.compress_type for entry in zipped.infolist()} == {zipfile.ZIP_DEFLATED}
