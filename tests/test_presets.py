"""Presets, the plans made from them, and what is refused."""

import functools
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from nnunet_runs import SOURCES, nnunet_folders, run, script, shorten, variables_set
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_pretrain.checkpoints.reading import read_checkpoint
from nnunet_pretrain.conversion import merge
from nnunet_pretrain.planning import PretrainSettings, load_preset, plan, preset_names

WINDOW = {"mean": -175.0, "std": 425.0, "percentile_00_5": -175.0, "percentile_99_5": 250.0}
ARCHITECTURES = {name: load_preset(name).architecture for name in preset_names()}
NEEDS_MONAI = {name for name, chosen in ARCHITECTURES.items() if chosen and chosen.network.startswith("monai.")}
TRAINING = {"optimizer": "AdamW", "initial_lr": 1e-3, "deep_supervision": False, "mirror_axes": []}
SMALL_MONAI = {
    "SegResNet": ({"init_filters": 8, "blocks_down": [1, 1, 1, 1]}, 3, [32, 32, 32]),
    # One voxel would be left of 32 x 32 x 32 at the bottom, which instance normalisation refuses in training.
    "SwinUNETR": ({"feature_size": 12}, 5, [32, 32, 64]),
}


def architecture(name, **changes):
    """Returns the architecture of a small preset with one of MONAI's networks."""
    arguments, halvings, patch = SMALL_MONAI[name]
    return {
        "network": f"monai.networks.nets.{name}",
        "arguments": {"spatial_dims": 3, **arguments},
        "strides": [[1, 1, 1], *[[2, 2, 2]] * halvings],
        "patch_size": patch,
        "batch_size": 2,
        **changes,
    }


CONVOLUTION = {
    "network": "torch.nn.Conv3d",
    "arguments": {"kernel_size": 3, "padding": 1},
    "strides": [[1, 1, 1], [2, 2, 2]],
    "patch_size": [8, 8, 8],
    "batch_size": 2,
}


def written(folder, **content):
    """Writes a preset and returns its path as a user gives it."""
    path = folder / "mine.json"
    path.write_text(json.dumps({"description": "of the test", **content}), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def merged(tmp_path_factory, sources):
    """Folders with a merged dataset; tests that change it copy it."""
    root = tmp_path_factory.mktemp("merged")
    with variables_set(nnunet_folders(root)):
        merge(900, "Merged", [(name, sources / name) for name in SOURCES])
    return root


@pytest.fixture(scope="module")
def planned(merged):
    """Plans the merged dataset with a preset, once per preset; returns a copy of the plans."""

    @functools.cache
    def text_of(name):
        with variables_set(nnunet_folders(merged)):
            return plan(900, name).read_text(encoding="utf-8")

    return lambda name: json.loads(text_of(name))


@pytest.fixture
def dataset(merged, nnunet):
    """A copy of the merged dataset in folders of the test's own; the images stay where they are."""
    return Path(shutil.copytree(merged / "nnUNet_raw/Dataset900_Merged", nnunet / "nnUNet_raw/Dataset900_Merged"))


@pytest.fixture
def preprocessed(nnunet):
    return nnunet / "nnUNet_preprocessed/Dataset900_Merged"


def network_of(plans, dataset_folder, deep_supervision):
    """Builds the network of plans with nnU-Net's own code."""
    manager = PlansManager(plans)
    configuration = manager.get_configuration("3d_fullres")
    dataset_json = json.loads((dataset_folder / "dataset.json").read_text(encoding="utf-8"))
    heads = manager.get_label_manager(dataset_json).num_segmentation_heads
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        1,
        heads,
        deep_supervision=deep_supervision,
    )
    return network, configuration, heads


@pytest.mark.parametrize("name", preset_names())
def test_plans_of_every_preset_are_read_and_built_by_nnunet(name, planned, dataset):
    if name in NEEDS_MONAI:
        pytest.importorskip("monai")
    preset = load_preset(name)
    plans = planned(name)
    assert PretrainSettings.from_plans(plans) == PretrainSettings(preset=name, training=preset.training)
    network, configuration, heads = network_of(plans, dataset, preset.training.deep_supervision)
    if preset.spacing_mm is not None:
        assert tuple(configuration.spacing) == preset.spacing_mm
    fixed = preset.network or preset.architecture
    if fixed is not None:
        assert tuple(configuration.patch_size) == fixed.patch_size
        assert configuration.batch_size == fixed.batch_size
    assert configuration.data_identifier == "nnUNetPretrainPlans_3d_fullres"
    image = torch.zeros(2, 1, *configuration.patch_size, device="meta")  # shapes only, without computing
    output = network.to("meta")(image)
    scales = [output] if isinstance(output, torch.Tensor) else output
    assert scales[0].shape == (2, heads, *configuration.patch_size)
    expected = np.cumprod(configuration.pool_op_kernel_sizes, axis=0)[:-1] if preset.training.deep_supervision else [1]
    assert len(scales) == len(expected)


@pytest.mark.parametrize("name", sorted({"suprem", "suprem_segresnet", "suprem_swinunetr"}))
def test_the_suprem_presets_say_what_suprem_did(name):
    preset = load_preset(name)
    fixed = preset.network or preset.architecture
    assert (preset.spacing_mm, preset.window_hu) == ((1.5, 1.5, 1.5), (-175.0, 250.0))
    assert fixed.patch_size == (96, 96, 96)
    assert fixed.batch_size == {"suprem": 8, "suprem_segresnet": 16, "suprem_swinunetr": 2}[name]
    for training, rate, epochs in ((preset.training, 1e-3, 800), (preset.transfer, 1e-4, 200)):
        assert (training.optimizer, training.schedule, training.weight_decay) == ("AdamW", "cosine", 1e-5)
        assert (training.initial_lr, training.warmup_epochs, training.num_epochs) == (rate, 20, epochs)
        assert training.oversample_foreground_percent == 0.67
        assert training.deep_supervision == (name == "suprem")


def test_nnunets_ct_normalisation_gives_exactly_the_window(planned, merged):
    manager = PlansManager(planned("suprem"))
    (scheme,) = manager.get_configuration("3d_fullres").normalization_schemes
    assert scheme == "CTNormalization"
    properties = manager.foreground_intensity_properties_per_channel["0"]
    fingerprint_file = merged / "nnUNet_preprocessed/Dataset900_Merged/dataset_fingerprint.json"
    fingerprint = json.loads(fingerprint_file.read_text(encoding="utf-8"))
    kept = fingerprint["foreground_intensity_properties_per_channel"]["0"]
    assert properties == {**kept, **WINDOW}
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

    hu = np.concatenate([np.arange(-1100, 3100, 0.5), [-175, 250]]).astype(np.float32)
    normalised = CTNormalization(use_mask_for_norm=False, intensityproperties=properties).run(hu.copy())
    np.testing.assert_array_equal(normalised, np.clip((hu + 175) / np.float32(425), 0, 1))


@pytest.mark.parametrize(("name", "letter"), [("resenc_m", "M"), ("resenc_l", "L")])
def test_residual_encoder_presets_plan_what_nnunet_plans(name, letter, planned, merged):
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset

    ours = planned(name)["configurations"]
    planner = getattr(residual_encoder_unet_planners, f"nnUNetPlannerResEnc{letter}")
    with variables_set(nnunet_folders(merged)):
        _, plans_name = plan_experiment_dataset(900, planner)
    folder = merged / "nnUNet_preprocessed/Dataset900_Merged"
    theirs = json.loads((folder / f"{plans_name}.json").read_text(encoding="utf-8"))["configurations"]
    assert set(ours) == set(theirs)
    for configuration in ours:
        for plans in (ours, theirs):
            plans[configuration].pop("data_identifier", None)  # ours has data of its own
        assert ours[configuration] == theirs[configuration]
    assert ours["3d_fullres"]["architecture"]["network_class_name"].endswith("ResidualEncoderUNet")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"architecture": {**CONVOLUTION, "patch_size": [8, 8, 7]}}, r"patch_size \[8, 8, 7\] must be divisible by \["),
        ({"architecture": {**CONVOLUTION, "strides": [[2, 2, 2]]}}, r"the first of the strides must be \[1, 1, 1\]"),
        (
            {"architecture": {**CONVOLUTION, "arch_kwargs": {}}},
            "unknown key 'architecture.arch_kwargs'; the keys there",
        ),
        ({"architecture": {"network": "torch.nn.Conv3d"}}, "key 'architecture.strides' is missing"),
        (
            {"architecture": CONVOLUTION, "network": {"patch_size": [8, 8, 8], "batch_size": 2}},
            "give either 'network' .* or 'architecture', not both",
        ),
        ({"window_hu": [250, -175]}, "window_hu: .*lower < upper, got"),
        ({"spacing_mm": [1.5, 0, 1.5]}, "spacing_mm: .*three positive numbers"),
        ({"window": [-175, 250]}, "unknown key 'window'; the keys there are description, planner, .*window_hu"),
    ],
)
def test_a_wrong_preset_is_refused_with_its_file(content, message, tmp_path):
    path = written(tmp_path, **content)
    with pytest.raises(ValueError, match=rf"mine\.json: .*{message}"):
        load_preset(path)


def test_a_preset_of_ones_own_is_named_by_its_file(dataset, tmp_path, monkeypatch):
    path = written(tmp_path, architecture=CONVOLUTION, training=TRAINING, transfer=TRAINING)
    monkeypatch.chdir(tmp_path)
    plans = json.loads(plan(900, "mine.json").read_text(encoding="utf-8"))
    assert PretrainSettings.from_plans(plans).preset == path
    network, configuration, heads = network_of(plans, dataset, deep_supervision=False)
    assert network(torch.zeros(1, 1, *configuration.patch_size)).shape == (1, heads, 8, 8, 8)
    with pytest.raises(ValueError, match=r"unknown preset 'other.json'; known are .*, or a path to a .json file"):
        plan(900, "other.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"architecture": {**CONVOLUTION, "network": "nowhere.Net"}}, "needs the package 'nowhere'"),
        ({"architecture": {**CONVOLUTION, "arguments": {"kernel": 3}}}, "has no argument 'kernel'; its arguments are"),
        ({"architecture": {**CONVOLUTION, "arguments": {"kernel_size": 3}}}, "gives outputs of shape .* expected"),
        ({"architecture": CONVOLUTION, "transfer": {}}, 'set "deep_supervision" to false for training and transfer'),
        ({"planner": "nnUNetPlannerHuge"}, "nnU-Net has no planner 'nnUNetPlannerHuge'"),
    ],
)
def test_what_a_preset_asks_for_is_checked_before_anything_is_computed(
    content, message, dataset, preprocessed, tmp_path
):
    if content.get("architecture") == CONVOLUTION:  # deep supervision over more than one scale
        strides = [*CONVOLUTION["strides"], [2, 2, 2]]
        content = {**content, "architecture": {**CONVOLUTION, "strides": strides}}
    with pytest.raises(ValueError, match=message):
        plan(900, written(tmp_path, **{"training": TRAINING, "transfer": TRAINING, **content}))
    assert not preprocessed.exists()


def test_a_window_without_a_ct_channel_is_refused(dataset, preprocessed):
    content = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    (dataset / "dataset.json").write_text(json.dumps({**content, "channel_names": {"0": "T1"}}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"window in Hounsfield units, but the channels are \['T1'\]; name the CT"):
        plan(900, "suprem")
    assert not preprocessed.exists()


def test_a_preset_for_3d_is_refused_for_single_slices_and_leaves_no_plans(dataset, preprocessed):
    content = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    for case, entry in content["dataset"].items():
        pixels = np.random.default_rng(0).integers(0, 3, (24, 24, 1))
        for kind, folder in (("images", "imagesTr"), ("label", "labelsTr")):
            (dataset / folder).mkdir(exist_ok=True)
            path = dataset / folder / f"{case}.nii.gz"
            path.unlink(missing_ok=True)
            nibabel.save(nibabel.Nifti1Image(pixels.astype(np.int16), np.diag([2.0, 2.0, 2.0, 1.0])), path)
            entry[kind] = [str(path)] if kind == "images" else str(path)
    (dataset / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"the preset is for 3d_fullres, but nnU-Net planned \['2d'\].*choose a preset"
    ):
        plan(900, "tiny")
    assert (preprocessed / "dataset_fingerprint.json").is_file()
    assert not (preprocessed / "nnUNetPretrainPlans.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALL_MONAI))
def test_monai_networks_are_trained_validated_and_predicted_by_stock_commands(name, dataset, nnunet):
    pytest.importorskip("monai")
    environment = nnunet_folders(nnunet)
    settings = {"spacing_mm": [18, 18, 18], "window_hu": [-175, 250], "training": TRAINING, "transfer": TRAINING}
    plans_file = plan(900, written(nnunet, architecture=architecture(name), **settings))
    shorten(plans_file, num_epochs=1, num_iterations_per_epoch=2, num_val_iterations_per_epoch=1)
    selection = ["-d", "900", "-c", "3d_fullres"]
    run([script("nnUNetv2_preprocess"), *selection, "-plans_name", "nnUNetPretrainPlans", "-np", "2"], environment)
    command = [script("nnUNetv2_train"), "900", "3d_fullres", "all", "-device", "cpu"]
    run([*command, "-tr", "nnUNetTrainerPretrain", "-p", "nnUNetPretrainPlans"], environment)
    model = nnunet / "nnUNet_results/Dataset900_Merged/nnUNetTrainerPretrain__nnUNetPretrainPlans__3d_fullres"
    assert (model / "fold_all/validation/summary.json").is_file()
    checkpoint = read_checkpoint(model / "fold_all/checkpoint_final.pth")
    assert all(weight.startswith("backbone.") for weight in checkpoint["network_weights"])
    entry = next(iter(json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))["dataset"].values()))
    image = (dataset / entry["images"][0]).resolve()
    (nnunet / "images").mkdir()
    shutil.copyfile(image, nnunet / "images/case_0000.nii.gz")
    predict = [script("nnUNetv2_predict"), "-i", nnunet / "images", "-o", nnunet / "predicted", *selection]
    predict += ["-f", "all", "-tr", "nnUNetTrainerPretrain", "-p", "nnUNetPretrainPlans", "-device", "cpu"]
    run([*predict, "-npp", "1", "-nps", "1"], environment)
    predicted = nibabel.load(nnunet / "predicted/case.nii.gz")
    assert predicted.shape == nibabel.load(image).shape
    assert np.issubdtype(np.asarray(predicted.dataobj).dtype, np.integer)
