"""`preprocess` writes what stock nnU-Net writes, resumes after anything, and names what it cannot read."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import blosc2
import nibabel as nib
import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_pretrain.planning.resampling import resampling_of, use_torch_resampling
from nnunet_pretrain.preprocessing import preprocess
from nnunet_pretrain.preprocessing.preprocess import chosen_device

NAME, PLANS = "Dataset905_Small", "nnUNetTestPlans"
SPACINGS = {"iso": (1.0, 1.0, 1.2), "thick": (0.7, 0.7, 4.0), "right": (1.2, 1.2, 1.2)}
SPLINES = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}


def plans_like_nnunets():
    """Returns plans with every entry that preprocessing and the data loader read."""
    architecture = {"network_class_name": "torch.nn.Identity", "arch_kwargs": {}, "_kw_requires_import": []}
    common = {
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": SPLINES,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**SPLINES, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**SPLINES, "order": 1},
        "architecture": architecture,
    }
    configurations = {
        "2d": {**common, "data_identifier": f"{PLANS}_2d", "patch_size": [16, 16], "spacing": [1.2, 1.2]},
        "3d_fullres": {
            **common,
            "data_identifier": f"{PLANS}_3d_fullres",
            "patch_size": [12, 16, 16],
            "spacing": [1.2, 1.2, 1.2],
        },
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    return {
        "dataset_name": NAME,
        "plans_name": PLANS,
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 50.0, "std": 90.0, "percentile_00_5": -500.0, "percentile_99_5": 300.0}
        },
        "configurations": configurations,
    }


def write_case(raw, case, spacing, seed=0):
    random = np.random.default_rng(seed)
    image = random.normal(0, 80, (22, 24, 14)).astype(np.int16)
    image[:2] = 0  # nnU-Net crops this
    label = np.zeros(image.shape, np.uint8)
    label[4:12, 3:12, 2:9], label[8:18, 10:20, 5:12], label[6:9, 6:9, 4:6] = 1, 2, 3
    label[18:, :, :3] = 4  # ignore
    affine = np.diag([*spacing, 1.0])
    for folder, name, array in (("imagesTr", f"{case}_0000", image), ("labelsTr", case, label)):
        (raw / folder).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, affine), raw / folder / f"{name}.nii.gz")


@pytest.fixture
def dataset(nnunet):
    raw, base = nnunet / "nnUNet_raw" / NAME, nnunet / "nnUNet_preprocessed" / NAME
    for seed, (case, spacing) in enumerate(SPACINGS.items()):
        write_case(raw, case, spacing, seed)
    labels = {"background": 0, "a": 1, "b": 2, "c": 3, "ignore": 4}
    description = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 3, "file_ending": ".nii.gz"}
    base.mkdir()
    for folder in (raw, base):
        (folder / "dataset.json").write_text(json.dumps(description))
    found = SimpleNamespace(raw=raw, base=base, json=description, plans=plans_like_nnunets())
    found.data = base / f"{PLANS}_3d_fullres"
    found.records = base / f".{PLANS}_3d_fullres"
    save_plans(found)
    return found


def save_plans(dataset):
    (dataset.base / f"{PLANS}.json").write_text(json.dumps(dataset.plans))


def make(configurations=("3d_fullres",), **options):
    lines = []
    folders = preprocess(905, PLANS, configurations, "cpu", **{"num_processes": 1, **options}, report=lines.append)
    return folders, " ".join(lines)


def stock(dataset, folder, configuration="3d_fullres"):
    """Lets stock nnU-Net's preprocessor write all cases to a folder."""
    folder.mkdir()
    manager = PlansManager(dataset.plans)
    files = get_filenames_of_train_images_and_targets(str(dataset.raw), dataset.json)
    for case, entry in files.items():
        DefaultPreprocessor(verbose=False).run_case_save(
            str(folder / case),
            entry["images"],
            entry["label"],
            manager,
            manager.get_configuration(configuration),
            dataset.json,
        )
    return folder


def assert_equal(ours, theirs):
    assert type(ours) is type(theirs)
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            assert_equal(ours[key], value)
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_equal(one, other)
    elif isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    else:
        assert ours == theirs


def assert_same_files(ours, theirs):
    assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in theirs.iterdir())
    for path in theirs.glob("*.b2nd"):
        one, other = blosc2.open(str(ours / path.name), mode="r"), blosc2.open(str(path), mode="r")
        assert (one.dtype, one.chunks, one.blocks) == (other.dtype, other.chunks, other.blocks)
        for key in ("codec", "clevel", "filters"):
            assert getattr(one.schunk.cparams, key) == getattr(other.schunk.cparams, key)
        np.testing.assert_array_equal(one[:], other[:])
    for path in theirs.glob("*.pkl"):
        assert_equal(pickle.loads((ours / path.name).read_bytes()), pickle.loads(path.read_bytes()))


def times(dataset):
    return {path.name: path.stat().st_mtime_ns for path in dataset.data.iterdir()}


@pytest.mark.parametrize("resampling", ["nnunet", "torch"])
@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_files_are_those_of_stock_nnunet(dataset, tmp_path, resampling, configuration):
    if resampling == "torch":
        dataset.plans = use_torch_resampling(dataset.plans)
        save_plans(dataset)
    (folder,), _ = make([configuration])
    assert folder == dataset.base / f"{PLANS}_{configuration}"
    assert_same_files(folder, stock(dataset, tmp_path / "stock", configuration))
    kept = pickle.loads((folder / "iso.pkl").read_bytes())
    assert len(kept["class_locations"][(-1, 0, 1, 2, 3)]) > len(kept["class_locations"][3]) > 0
    for case in SPACINGS:
        copy = dataset.base / "gt_segmentations" / f"{case}.nii.gz"
        assert copy.read_bytes() == (dataset.raw / "labelsTr" / f"{case}.nii.gz").read_bytes()


def test_transposed_regions_and_worker_processes(dataset, tmp_path):
    dataset.plans.update(transpose_forward=[2, 0, 1], transpose_backward=[1, 2, 0])
    dataset.json["labels"] = {"background": 0, "whole": [1, 2, 3], "part": [2, 3], "ignore": 4}
    dataset.json["regions_class_order"] = [1, 2]
    (dataset.base / "dataset.json").write_text(json.dumps(dataset.json))
    save_plans(dataset)
    make(num_processes=2)
    assert_same_files(dataset.data, stock(dataset, tmp_path / "stock"))


def test_plans_that_resample_labels_with_torch_are_followed(dataset, tmp_path):
    settings = {"is_seg": True, "force_separate_z": False, "memefficient_seg_resampling": False}
    fullres = dataset.plans["configurations"]["3d_fullres"]
    fullres.update(resampling_fn_seg="resample_torch_fornnunet", resampling_fn_seg_kwargs=settings)
    save_plans(dataset)
    make()
    assert_same_files(dataset.data, stock(dataset, tmp_path / "stock"))


def test_torch_plans_keep_labels_and_nnunets_functions(dataset, tmp_path):
    assert resampling_of(dataset.plans) == "nnunet"
    changed = use_torch_resampling(dataset.plans)
    assert resampling_of(changed) == "torch"
    assert resampling_of(dataset.plans) == "nnunet"
    before, after = stock(dataset, tmp_path / "before"), tmp_path / "after"
    stock(SimpleNamespace(**{**vars(dataset), "plans": changed}), after)
    for case in SPACINGS:
        old, new = (blosc2.open(str(folder / f"{case}_seg.b2nd"), mode="r")[:] for folder in (before, after))
        np.testing.assert_array_equal(old, new)
        old, new = (blosc2.open(str(folder / f"{case}.b2nd"), mode="r")[:] for folder in (before, after))
        assert old.shape == new.shape
        assert np.corrcoef(old.ravel(), new.ravel())[0, 1] > 0.9  # white noise, of which linear keeps less
    logits = torch.rand(2, 4, 5, 6)
    export = PlansManager(changed).get_configuration("3d_cascade_fullres").resampling_fn_probabilities
    assert export(logits, (8, 5, 7), (1, 1, 1), (0.5, 1, 0.9)).shape == (2, 8, 5, 7)


def test_stock_nnunet_loads_batches_of_it(dataset):
    make()
    data = infer_dataset_class(str(dataset.data))(str(dataset.data))
    image, seg, previous, properties = data.load_case("thick")
    assert image.shape == seg.shape
    assert previous is None
    assert set(properties["class_locations"]) == {1, 2, 3, (-1, 0, 1, 2, 3)}
    labels = PlansManager(dataset.plans).get_label_manager(dataset.json)
    loader = nnUNetDataLoader(data, 2, (12, 16, 16), (12, 16, 16), labels, oversample_foreground_percent=1.0)
    batch = next(loader)
    assert tuple(batch["data"].shape) == (2, 1, 12, 16, 16)
    assert torch.isfinite(batch["data"]).all()
    assert {1, 2, 3} & set(batch["target"].unique().tolist())


def test_finished_cases_are_left_alone_and_the_rest_redone(dataset, tmp_path):
    make()
    first = times(dataset)
    assert make()[1].startswith("3d_fullres: 0 of 3 cases to make")
    assert times(dataset) == first

    (dataset.data / "iso_seg.b2nd").unlink()
    damaged = dataset.data / "thick.pkl"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    write_case(dataset.raw, "right", SPACINGS["right"], seed=9)
    assert "3 of 3" in make()[1]
    assert_same_files(dataset.data, stock(dataset, tmp_path / "stock"))

    before = times(dataset)
    write_case(dataset.raw, "right", SPACINGS["right"], seed=10)
    assert "1 of 3" in make()[1]
    assert {name for name, at in times(dataset).items() if at != before[name]} == {
        f"right{ending}" for ending in (".b2nd", "_seg.b2nd", ".pkl")
    }
    copy = dataset.base / "gt_segmentations/right.nii.gz"
    assert copy.stat().st_mtime_ns >= (dataset.raw / "labelsTr/right.nii.gz").stat().st_mtime_ns
    assert "3 of 3" in make(overwrite=True)[1]


def test_changed_plans_and_labels_redo_everything_but_training_settings_do_not(dataset, tmp_path):
    make()
    dataset.plans["configurations"]["3d_fullres"].update(batch_size=7)
    dataset.plans["nnunet_pretrain"] = {"training": {"num_epochs": 3}}
    save_plans(dataset)
    assert "0 of 3" in make()[1]
    dataset.plans["configurations"]["3d_fullres"].update(spacing=[1.5, 1.2, 1.2])
    save_plans(dataset)
    assert "3 of 3" in make()[1]
    dataset.json["labels"] = {"background": 0, "a": 1, "b": 2, "c": 3, "d": 4}
    (dataset.base / "dataset.json").write_text(json.dumps(dataset.json))
    assert "3 of 3" in make()[1]
    assert_same_files(dataset.data, stock(dataset, tmp_path / "stock"))


def test_removed_cases_and_foreign_files_go_as_with_stock(dataset, tmp_path):
    make()
    for path in (dataset.raw / "imagesTr/iso_0000.nii.gz", dataset.raw / "labelsTr/iso.nii.gz"):
        path.unlink()
    (dataset.data / "old.npz").write_bytes(b"of another nnU-Net")
    (dataset.data / "folder").mkdir()
    (dataset.records / "partial").mkdir(exist_ok=True)
    (dataset.records / "partial/thick.b2nd").write_bytes(b"half")
    assert "0 of 2" in make()[1]
    assert_same_files(dataset.data, stock(dataset, tmp_path / "stock"))
    assert not (dataset.records / "iso.json").exists()


def test_a_case_without_a_whole_record_is_made_again(dataset, tmp_path):
    stock_before = stock(dataset, dataset.data)  # made by nnUNetv2_preprocess, or killed before its record
    assert sorted(stock_before.iterdir())
    assert "3 of 3" in make()[1]
    (dataset.records / "iso.json").write_text('{"digest": ')
    assert "1 of 3" in make()[1]
    assert_same_files(dataset.data, stock(dataset, tmp_path / "stock"))


def test_a_killed_run_goes_on_where_it_was(dataset, tmp_path):
    for seed in range(12):
        write_case(dataset.raw, f"more{seed:02d}", (1.0, 1.0, 1.1), seed)
    code = (
        "from nnunet_pretrain.preprocessing import preprocess; "
        f"preprocess(905, '{PLANS}', ['3d_fullres'], 'cpu', num_processes=1)"
    )
    running = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while running.poll() is None and len(list(dataset.records.glob("[!.]*.json"))) < 3:
            time.sleep(0.001)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    complete = {path.stem for path in dataset.records.glob("[!.]*.json")}
    assert complete
    before = times(dataset)
    make()
    after = times(dataset)
    assert all(after[f"{case}.b2nd"] == before[f"{case}.b2nd"] for case in complete)
    assert_same_files(dataset.data, stock(dataset, tmp_path / "stock"))


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_broken_case_is_named_after_the_others_are_finished(dataset, num_processes):
    image = dataset.raw / "imagesTr/iso_0000.nii.gz"
    make()
    image.write_bytes(image.read_bytes()[:300])
    (dataset.raw / "labelsTr/right.nii.gz").unlink()
    write_case(dataset.raw, "thick", SPACINGS["thick"], seed=11)
    with pytest.raises(ValueError, match="2 cases could not be preprocessed, all others are") as caught:
        make(num_processes=num_processes)
    assert f"case iso: {image} cannot be read" in str(caught.value)
    assert f"case right: {dataset.raw / 'labelsTr/right.nii.gz'} is missing" in str(caught.value)
    assert {path.name for path in dataset.data.iterdir()} == {"thick.b2nd", "thick_seg.b2nd", "thick.pkl"}


def test_image_and_label_of_different_shape(dataset):
    affine = np.diag([*SPACINGS["iso"], 1.0])
    nib.save(nib.Nifti1Image(np.zeros((5, 5, 5), np.uint8), affine), dataset.raw / "labelsTr/iso.nii.gz")
    with pytest.raises(ValueError, match=r"case iso: AssertionError: Shape mismatch .*iso_0000.nii.gz, .*iso.nii.gz\)"):
        make()


def test_wrong_requests_say_what_to_do(dataset, monkeypatch):
    with pytest.raises(ValueError, match=r"no configuration '3d'; it has 2d, 3d_fullres, 3d_cascade_fullres"):
        make(["3d"])
    with pytest.raises(ValueError, match="-np must be at least 1, got 0"):
        make(num_processes=0)
    with pytest.raises(FileNotFoundError, match=r"nnUNetPlans.json not found; plan first: `nnunet_pretrain plan"):
        preprocess(905, "nnUNetPlans")
    with pytest.raises(FileNotFoundError, match="no dataset with id 906"):
        preprocess(906, PLANS)
    with pytest.raises(ValueError, match="--device must be cuda or cpu, got 'tpu'"):
        chosen_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen_device(None) == "cpu"
    with pytest.raises(ValueError, match="torch finds no GPU here; use --device cpu"):
        chosen_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_labels_are_equal_and_images_nearly(dataset, tmp_path):
    dataset.plans = use_torch_resampling(dataset.plans)
    save_plans(dataset)
    preprocess(905, PLANS, ["3d_fullres"], "cuda", num_processes=2, report=str)
    theirs = stock(dataset, tmp_path / "stock")
    for path in theirs.glob("*.b2nd"):
        one, other = (blosc2.open(str(folder / path.name), mode="r")[:] for folder in (dataset.data, theirs))
        np.testing.assert_allclose(one, other, rtol=0, atol=0 if "_seg" in path.name else 1e-5)


def test_the_hidden_folder_is_the_only_thing_added(dataset):
    make()
    added = {path.name for path in dataset.base.iterdir()}
    assert added == {
        "dataset.json",
        f"{PLANS}.json",
        "gt_segmentations",
        f"{PLANS}_3d_fullres",
        f".{PLANS}_3d_fullres",
    }
    assert {path.name for path in dataset.records.iterdir()} == {*(f"{c}.json" for c in SPACINGS), "partial"}
    assert not os.listdir(dataset.records / "partial")
