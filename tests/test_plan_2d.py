"""Plans for natural images: the target's network without strides along depth, and the images' own numbers."""

import numpy as np
import pytest
import torch
from natural_datasets import (
    CLASSES,
    IMAGES,
    NARROW,
    TARGET,
    target_architecture,
    write_natural_images,
    write_target_plans,
)
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_pretrain.cli import main
from nnunet_pretrain.conversion.natural_images.index import ImageIndex, NaturalImage
from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.networks.planned import planned_network
from nnunet_pretrain.planning.existing_plans import find_plans
from nnunet_pretrain.planning.natural_plans import (
    depth_preserving,
    fingerprint,
    fitted_batch,
    fitted_patch,
    intensities,
)
from nnunet_pretrain.planning.plan_2d import plan_2d
from nnunet_pretrain.planning.settings import PretrainSettings
from nnunet_pretrain.preprocessing.preprocess import preprocess


def planned(root, architecture=None, task="classification", **options):
    """Plans a new dataset of natural images for a target with this network; returns the plans."""
    write_target_plans(root, architecture)
    write_natural_images(root, task, options.pop("storage", "volumes"), files=options.pop("files", False))
    return read_json(plan_2d(920, 27, num_processes=1, **options))


def network_of(plans, outputs=2):
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    return planned_network(architecture, 1, outputs, initialise=True, deep_supervision=False)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_the_network_is_the_targets_without_strides_along_depth(nnunet, residual, full):
    wanted = target_architecture(residual, "mixed", NARROW)
    plans = planned(nnunet, wanted, "segmentation", full_kernels=full)
    made = plans["configurations"]["3d_fullres"]["architecture"]
    assert made["network_class_name"] == wanted["network_class_name"]
    given, theirs = made["arch_kwargs"], dict(wanted["arch_kwargs"])
    assert given["strides"] == [[1, 1, 1], [1, 2, 2], [1, 2, 2]]
    assert given["kernel_sizes"] == ([[3, 3, 3]] * 3 if full else NARROW)
    for key in ("strides", "kernel_sizes"):
        given.pop(key), theirs.pop(key)
    assert given == theirs


@pytest.mark.parametrize("task", ["classification", "segmentation"])
@pytest.mark.parametrize("residual", [False, True])
def test_three_slices_reach_every_stage(nnunet, task, residual):
    plans = planned(nnunet, target_architecture(residual, "isotropic"), task, preset="tiny")
    network, depths = network_of(plans), []
    for stage in network.encoder.stages:
        stage.register_forward_hook(lambda _, inputs, output: depths.append(output.shape[2]))
    found = network(torch.randn(2, 1, *plans["configurations"]["3d_fullres"]["patch_size"]))
    assert depths == [3, 3, 3]
    assert found.shape == ((2, len(CLASSES)) if task == "classification" else (2, 2, 3, 48, 48))


@pytest.mark.parametrize("residual", [False, True])
def test_every_tap_along_depth_learns_from_three_slices(nnunet, residual):
    plans = planned(nnunet, target_architecture(residual, "isotropic"), preset="tiny")
    torch.manual_seed(1)
    network = network_of(plans)
    for tensor in network.parameters():  # nnU-Net's residual branches start at 0, behind which nothing learns at first
        torch.nn.init.normal_(tensor, std=0.3)
    network(torch.randn(2, 1, 3, 16, 16)).square().sum().backward()
    kernels = [p for name, p in network.encoder.named_parameters() if p.ndim == 5 and p.shape[2] == 3]
    assert len(kernels) >= 4
    for kernel in kernels:
        assert (kernel.grad.abs().amax((0, 1, 3, 4)) > 0).all()


def test_numbers_are_the_images_own_and_never_the_targets(nnunet):
    plans = planned(nnunet)
    chosen = plans["configurations"]["3d_fullres"]
    assert find_plans(27).chosen["normalization_schemes"] == ["CTNormalization"]
    assert (chosen["normalization_schemes"], chosen["use_mask_for_norm"]) == (["ZScoreNormalization"], [False])
    assert (chosen["spacing"], plans["transpose_forward"], chosen["patch_size"]) == ([1] * 3, [0, 1, 2], [3, 224, 224])
    numbers = plans["foreground_intensity_properties_per_channel"]["0"]
    assert 90 < numbers["mean"] < 125
    assert numbers["min"] == 0
    assert numbers["percentile_99_5"] <= numbers["max"] == 255
    manager = PlansManager(plans)
    configuration = manager.get_configuration("3d_fullres")
    assert manager.image_reader_writer_class.__name__ == "SimpleITKIO"
    image = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    assert np.array_equal(configuration.resampling_fn_data(image, (3, 8, 8), (1, 1, 1), (1, 1, 1)), image)


def test_pooled_intensities_are_those_of_all_pixels():
    rng = np.random.default_rng(1)
    arrays = [rng.integers(0, 60 * (i + 2), (5 + i, 7, 3)) for i in range(3)]
    rows = [NaturalImage(f"c{i}", "f", "", "", *a.shape[:2], a.mean(), a.std()) for i, a in enumerate(arrays)]
    values = np.concatenate([array.ravel() for array in arrays])
    found = intensities(ImageIndex.from_rows(rows))
    assert (found["mean"], found["std"]) == (pytest.approx(values.mean()), pytest.approx(values.std()))


def test_the_fingerprint_of_very_many_images_stays_small():
    rows = [NaturalImage(f"c{i:05d}", "f", "", "", 10 + i, 20, 100.0, 50.0) for i in range(2500)]
    found = fingerprint(ImageIndex.from_rows(rows))
    heights = [shape[1] for shape in found["shapes_after_crop"]]
    assert len(heights) == len(found["spacings"]) == 1000
    assert (heights[0], heights[-1], heights == sorted(set(heights))) == (10, 2509, True)


def test_patch_and_batch_fit_the_network_and_the_targets_voxels():
    strides = [[1, 1, 1], [1, 2, 4], [1, 2, 4]]
    assert fitted_patch((30, 30), strides) == [3, 32, 32]
    assert fitted_patch((4, 4), strides) == [3, 8, 32]
    assert fitted_batch((3, 32, 32), 10 * 3 * 32 * 32 + 5) == 10
    assert fitted_batch((3, 224, 224), 1000) == 2


def test_the_batch_of_masks_has_the_targets_voxels_and_deep_supervision_is_for_masks(nnunet):
    segmentation = planned(nnunet, None, "segmentation")
    settings = PretrainSettings.from_plans(segmentation)
    assert (settings.preset, settings.training.deep_supervision, settings.classification) == (
        "vdt_segmentation", True, None,
    )  # fmt: skip
    assert segmentation["configurations"]["3d_fullres"]["batch_size"] == 2  # 16 x 32 x 32 x 2 voxels are less
    classification = planned(nnunet)
    settings = PretrainSettings.from_plans(classification)
    assert settings.classification is not None
    assert settings.classification.classes == tuple(CLASSES)
    assert (settings.preset, settings.training.deep_supervision) == ("vdt", False)
    assert settings.natural_images is not None
    assert settings.natural_images.target == (TARGET, "nnUNetPlans", "3d_fullres")
    assert classification["configurations"]["3d_fullres"]["batch_size"] == 32


def test_the_controls_differ_in_what_is_shown_and_in_nothing_else(nnunet):
    plans = planned(nnunet)
    folder = nnunet / "nnUNet_preprocessed" / IMAGES
    for name, changed in (("grey", {"slices": "grey"}), ("unshuffled", {"shuffle_depth": False})):
        control = read_json(folder / f"nnUNetVDTPlans__{name}.json")
        natural = control["nnunet_pretrain"]["natural_images"]
        assert {key: natural[key] for key in changed} == changed
        natural.update({"slices": "rgb", "shuffle_depth": True})
        assert control == {**plans, "plans_name": f"nnUNetVDTPlans__{name}"}
    for name in ("dataset.json", "natural_images.csv"):
        assert (folder / name).read_bytes() == (nnunet / "nnUNet_raw" / IMAGES / name).read_bytes()


def test_the_controls_share_preprocessed_images(nnunet):
    planned(nnunet, None, "segmentation", files=True, preset="tiny")
    lines = []
    for name in ("nnUNetVDTPlans", "nnUNetVDTPlans__grey", "nnUNetVDTPlans__unshuffled"):
        folders = preprocess(920, name, num_processes=1, device="cpu", report=lines.append)
        assert [folder.name for folder in folders] == ["nnUNetVDTPlans_3d_fullres"]
    assert [line.partition(" cases")[0] for line in lines] == [
        "3d_fullres: 6 of 6", "3d_fullres: 0 of 6", "3d_fullres: 0 of 6",
    ]  # fmt: skip


def test_masks_of_originals_are_put_beside_the_plans_and_nothing_is_preprocessed(nnunet, capsys):
    planned(nnunet, None, "segmentation", storage="originals", files=True)
    raw, copies = nnunet / "nnUNet_raw" / IMAGES / "labelsTr", nnunet / "nnUNet_preprocessed" / IMAGES
    masks = sorted((copies / "gt_segmentations").iterdir())
    assert [path.name for path in masks] == sorted(path.name for path in raw.iterdir())
    (copies / "gt_segmentations/other.nii.gz").touch()
    masks[0].unlink()
    masks[0].write_bytes(b"old")
    plan_2d(920, 27, num_processes=1)
    assert [path.read_bytes() for path in sorted((copies / "gt_segmentations").iterdir())] == [
        path.read_bytes() for path in sorted(raw.iterdir())
    ]
    assert main(["preprocess", "-d", "920", "-p", "nnUNetVDTPlans"]) == 0
    assert "nothing to preprocess" in capsys.readouterr().out
    (raw / "photo_00002.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"photo_00002.nii.gz is missing; run `nnunet_pretrain convert_2d`"):
        plan_2d(920, 27, num_processes=1)


def test_the_command_says_what_was_planned_and_what_comes_next(nnunet, capsys):
    write_target_plans(nnunet)
    write_natural_images(nnunet)
    assert main(["plan_2d", "-d", "920", "--target-plans", "27", "-np", "1"]) == 0
    said = capsys.readouterr().out
    assert "network of nnUNetPlans, 3d_fullres, of Dataset027_Target: PlainConvUNet, 3 stages" in said
    assert "patch 3x224x224, batch 32: 4,816,896 voxels per step (target: 16x32x32, batch 2, 32,768)" in said
    assert "nnUNetVDTPlans__grey" in said
    assert "nnUNetv2_train 920 3d_fullres all -tr nnUNetTrainerVDTClassification -p nnUNetVDTPlans" in said
    assert main(["plan_2d", "-d", "920", "--target-plans", "28"]) == 2
    assert "nnUNetv2_plan_and_preprocess -d 28" in capsys.readouterr().err


def test_plans_are_found_by_file_dataset_and_name(nnunet):
    path = write_target_plans(nnunet)
    write_target_plans(nnunet, name="nnUNetResEncUNetMPlans")
    for text in (path, "27", TARGET, "27/nnUNetPlans", f"{TARGET}/nnUNetPlans"):
        assert find_plans(text).identity == (TARGET, "nnUNetPlans", "3d_fullres")
    assert find_plans("27/nnUNetResEncUNetMPlans").identity[1] == "nnUNetResEncUNetMPlans"
    wide = find_plans(27, "wide")
    assert wide.chosen["patch_size"] == [16, 64, 64]
    assert wide.architecture["arch_kwargs"]["n_stages"] == 3


@pytest.mark.parametrize(
    ("text", "configuration", "message"),
    [
        ("28", "3d_fullres", "nnUNetv2_plan_and_preprocess -d 28"),
        ("27/nnUNetMyPlans", "3d_fullres", "there are nnUNetPlans"),
        ("missing.json", "3d_fullres", r"plans missing.json not found"),
        ("27", "2d", "is 2D"),
        ("27", "cascade", "takes the output of '3d_lowres'"),
        ("27", "3d_lowres", "has no configuration '3d_lowres'; it has 2d, 3d_fullres, wide, cascade"),
    ],
)
def test_unusable_plans_are_refused(nnunet, text, configuration, message):
    write_target_plans(nnunet)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_plans(text, configuration)


def test_networks_that_nnunet_does_not_plan_are_refused(nnunet):
    path = write_target_plans(nnunet)
    wrapped = {"network": "monai.networks.nets.SegResNet", "arguments": {}, "strides": [[1, 1, 1]]}
    for name, arguments, message in (
        ("nnunet_pretrain.networks.adapter.AdaptedNetwork", wrapped, "possible are PlainConvUNet and ResidualEncoder"),
        (target_architecture()["network_class_name"], {"n_stages": 3, "strides": [1, 2, 2]}, "no `strides`"),
        (target_architecture()["network_class_name"], {}, "is not whole"),
    ):
        plans = read_json(path)
        network = {"network_class_name": name, "arch_kwargs": arguments, "_kw_requires_import": []}
        plans["configurations"]["3d_fullres"]["architecture"] = network
        write_json(path, plans)
        with pytest.raises(ValueError, match=message):
            find_plans(27)
    write_json(path, {"not": "plans"})
    with pytest.raises(ValueError, match="holds no plans of nnU-Net"):
        find_plans(27)


def test_other_datasets_are_refused_and_nothing_is_written(nnunet):
    write_target_plans(nnunet)
    raw = write_natural_images(nnunet)
    content = read_json(raw / "dataset.json")
    for natural, message in (
        (None, "is no dataset of natural images"),
        ({**content["natural_images"], "storage": "cloud"}, "storage: .*got 'cloud'"),
        ({**content["natural_images"], "classes": ["cat"]}, "classes: "),
    ):
        write_json(raw / "dataset.json", {**content, "natural_images": natural})
        with pytest.raises(ValueError, match=message):
            plan_2d(920, 27)
    assert not (nnunet / "nnUNet_preprocessed" / IMAGES).exists()


def test_kernels_that_are_deep_already_keep_their_depth():
    made = depth_preserving(target_architecture(kernels=[[1, 3, 3], [5, 3, 3], [3, 3, 3]]), full_kernels=True)
    assert made["arch_kwargs"]["kernel_sizes"] == [[3, 3, 3], [5, 3, 3], [3, 3, 3]]
