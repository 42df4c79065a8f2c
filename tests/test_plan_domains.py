"""`plan_domains` gives every domain its own spacing and intensities, and `preprocess` makes every case by them."""

import json
import pickle
import shutil
from types import SimpleNamespace

import blosc2
import nibabel as nib
import numpy as np
import pytest
import torch
from nnunet_runs import SOURCES, nnunet_folders, variables_set
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from small_domains import CT, MEMBERS, MR, NAME, THICK, change_description, voxels_of, write_members, write_volume

from nnunet_pretrain.cli import main
from nnunet_pretrain.conversion import merge
from nnunet_pretrain.networks.planned import total_stride
from nnunet_pretrain.planning import PretrainSettings, load_preset
from nnunet_pretrain.planning.domain_plans import domain_tables, plans_of_domain
from nnunet_pretrain.planning.plan_domains import plan_domains
from nnunet_pretrain.preprocessing import preprocess
from nnunet_pretrain.preprocessing.preprocess import check_domain_records

PLANS = "nnUNetDomainPlans"
SMALL = {"patch_size": [16, 24, 24], "batch_size": 2, "base_features": 4, "max_features": 8}
CLIPPED = {"network": SMALL, "domains": {"clip_percentiles": [0.5, 99.5]}}


def preset_file(folder, **content):
    path = folder / "mine.json"
    path.write_text(json.dumps({"description": "of the test", **content}), encoding="utf-8")
    return str(path)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """The members as domains, clipped, planned, and preprocessed by two spawned workers."""
    root = tmp_path_factory.mktemp("domains")
    with variables_set(nnunet_folders(root)):
        write_members(root / "nnUNet_raw")
        preset = preset_file(root, **CLIPPED)
        arguments = ["-d", "910", "-n", "Domains", "--members", "3", "7", "9", "--channel", "T1", "--preset", preset]
        assert main(["plan_domains", *arguments, "-np", "1"]) == 0
        preprocess(910, PLANS, device="cpu", num_processes=2)
    base = root / "nnUNet_preprocessed" / NAME
    return SimpleNamespace(root=root, preset=preset, base=base, data=base / f"{PLANS}_3d_fullres")


@pytest.fixture
def domains(planned, nnunet):
    """A copy of it in folders of the test's own; the members stay where they are."""
    shutil.copytree(planned.root, nnunet, dirs_exist_ok=True)
    base = nnunet / "nnUNet_preprocessed" / NAME
    found = SimpleNamespace(raw=nnunet / "nnUNet_raw", base=base, data=base / f"{PLANS}_3d_fullres")
    found.plans, found.dataset_json = read(base / f"{PLANS}.json"), read(base / "dataset.json")
    found.numbers = PretrainSettings.from_plans(found.plans).domains.numbers
    return found


def make(dataset=910, preset="tiny", **options):
    return plan_domains(dataset, preset=preset, num_processes=1, **options)


def case_of(domains, case):
    """Returns image, label map and properties of a preprocessed case."""
    image, label = (blosc2.open(str(domains.data / f"{case}{part}.b2nd"), mode="r")[:] for part in ("", "_seg"))
    return image, label, pickle.loads((domains.data / f"{case}.pkl").read_bytes())


def sizes_of(member):
    """Returns shape and spacing of a member's cases in nnU-Net's axis order z, y, x."""
    return [(shape[::-1], spacing[::-1]) for shape, spacing in MEMBERS[member]["cases"]]


def test_every_domain_keeps_the_median_spacing_of_its_own_images(domains):
    for member in MEMBERS:
        expected = np.median([spacing for _, spacing in sizes_of(member)], axis=0)
        np.testing.assert_allclose(domains.numbers[member].spacing, expected, rtol=1e-6)
        alone = plans_of_domain(domains.plans, member)["configurations"]["3d_fullres"]
        np.testing.assert_allclose(alone["spacing"], expected, rtol=1e-6)
    joint = read(domains.base / "dataset_fingerprint.json")
    medians = [numbers.spacing for numbers in domains.numbers.values()]
    assert len(joint["spacings"]) == 3  # a vote for each domain, not for each case
    np.testing.assert_allclose(joint["spacings"], [np.median(medians, axis=0)] * 3)
    # THICK at 3 x 0.7 x 0.7 mm: (10, 32, 32), (12, 36, 32) and (12, 41, 46) voxels, in z, y, x
    np.testing.assert_array_equal(joint["shapes_after_crop"][2], [12, 36, 32])


def test_intensities_are_those_of_the_domain_alone(domains):
    for member, number in domains.numbers.items():
        inside = []
        for case in (case for case in domains.dataset_json["dataset"] if case.startswith(f"{member}__")):
            label = voxels_of(domains.raw / NAME / f"labelsTr/{case}.nii.gz")
            inside.append(voxels_of(domains.raw / NAME / f"imagesTr/{case}_0000.nii.gz")[label > 0])
        found = number.foreground_intensity_properties_per_channel["0"]
        values = np.concatenate(inside)
        assert (found["min"], found["max"]) == (values.min(), values.max())
        assert found["mean"] == pytest.approx(np.mean([one.mean() for one in inside]), rel=1e-3)


def test_resampled_shapes_and_intensities_follow_the_domain_in_spawned_workers(domains):
    for member in MEMBERS:
        target = np.array(domains.numbers[member].spacing)
        for number, (shape, spacing) in enumerate(sizes_of(member)):
            image, label, properties = case_of(domains, f"{member}__case{number}")
            assert properties["shape_after_cropping_and_before_resampling"] == shape
            expected = tuple(np.round(np.array(shape) * spacing / target).astype(int))
            assert image.shape[1:] == label.shape[1:] == expected
            if expected == shape:  # not resampled: exactly the z-scores of the clipped image
                original = voxels_of(domains.raw / member / f"imagesTr/case{number}_0000.nii.gz")
                low, high = np.percentile(original, (0.5, 99.5), method="nearest")
                values = np.clip(original.astype(np.float32), low, high)
                assert image.mean() == pytest.approx(0, abs=1e-4)
                assert image.std() == pytest.approx(1, abs=1e-4)
                assert image.max() == pytest.approx((high - values.mean()) / values.std(), rel=1e-4)
            ids = set(np.unique(label)) - {0, -1}
            assert ids <= set(domain_tables(domains.dataset_json)[member].stored_ids) | {6}
    assert not list(domains.data.glob(".*"))


def test_the_plans_share_one_network_with_a_branch_per_domain(domains):
    assert list(domains.plans["configurations"]) == ["3d_fullres"]
    manager = PlansManager(domains.plans)
    configuration = manager.get_configuration("3d_fullres")
    assert (list(configuration.patch_size), configuration.batch_size) == (SMALL["patch_size"], 2)
    assert configuration.data_identifier == f"{PLANS}_3d_fullres"
    arguments = configuration.network_arch_init_kwargs
    assert arguments["branches"] == {CT: 3, MR: 3, THICK: 2}
    assert configuration.pool_op_kernel_sizes == arguments["arch_kwargs"]["strides"]
    network = get_network_from_plans(
        configuration.network_arch_class_name, arguments, configuration.network_arch_init_kwargs_req_import, 1, 7
    )
    heads = {key: value.shape[0] for key, value in network.state_dict().items() if key.endswith("seg_layers.0.weight")}
    assert heads == {f"branches.{member}.seg_layers.0.weight": n for member, n in arguments["branches"].items()}
    settings = PretrainSettings.from_plans(domains.plans)
    assert settings.domains.clip_percentiles == (0.5, 99.5)
    assert all(number.normalization_schemes == ("ZScoreNormalization",) for number in settings.domains.numbers.values())
    assert read(domains.base / "splits_final.json") == read(domains.raw / NAME / "splits_final.json")
    assert (domains.base / "fingerprints.json").is_file()


def test_only_cases_of_a_domain_whose_plans_changed_are_made_again(domains):
    before = {path.name: path.stat().st_mtime_ns for path in domains.data.iterdir()}
    lines = []
    preprocess(910, PLANS, device="cpu", num_processes=1, report=lines.append)  # the copy has new times
    assert "8 of 8" in lines[0]
    preprocess(910, PLANS, device="cpu", num_processes=1, report=lines.append)
    assert "0 of 8" in lines[1]
    before = {path.name: path.stat().st_mtime_ns for path in domains.data.iterdir()}
    domains.plans["nnunet_pretrain"]["domains"]["numbers"][THICK]["spacing"] = [2.0, 1.0, 1.0]
    (domains.base / f"{PLANS}.json").write_text(json.dumps(domains.plans), encoding="utf-8")
    with pytest.raises(ValueError, match=r"3 of 8 cases in .* not made for their domain .*Dataset009_Thick__case0"):
        check_domain_records(domains.plans, domains.dataset_json)
    preprocess(910, PLANS, device="cpu", num_processes=1, report=lines.append)
    assert "3 of 8" in lines[2]
    redone = {name for name, time in before.items() if (domains.data / name).stat().st_mtime_ns != time}
    assert {name.split("__")[0] for name in redone} == {THICK}
    check_domain_records(domains.plans, domains.dataset_json)


def test_a_further_member_leaves_the_cases_of_the_others_alone(nnunet):
    raw, lines = nnunet / "nnUNet_raw", []
    write_members(raw, CT, THICK)
    make(912, name="Growing", members=(3, 9))
    preprocess(912, PLANS, device="cpu", num_processes=1, report=lines.append)
    shutil.copytree(raw / CT, raw / "Dataset011_Further")
    make(912, name="Growing", members=(3, 9, 11))
    preprocess(912, PLANS, device="cpu", num_processes=1, report=lines.append)
    assert "6 of 6 cases to make" in lines[0]
    assert "3 of 9 cases to make" in lines[1]
    (data,) = (nnunet / "nnUNet_preprocessed/Dataset912_Growing").glob("nnUNet*_3d_fullres")
    dataset = nnUNetDatasetBlosc2(str(data))
    found = {case: dataset.load_case(case)[3]["class_locations"] for case in dataset.identifiers}
    assert {case.split("__")[0]: set(places) for case, places in found.items()} == {
        CT: {1, 2},
        THICK: {3},
        "Dataset011_Further": {4, 5},
    }


def test_cases_of_stock_preprocessing_are_found_without_the_raw_data(domains):
    shutil.rmtree(domains.raw)
    check_domain_records(domains.plans, domains.dataset_json)  # a copy, with other times, is as good
    for spoil in (
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    ):
        path = domains.data / f"{MR}__case1.b2nd"
        content = path.read_bytes()
        spoil(path)
        with pytest.raises(
            ValueError, match=r"1 of 8 .*Dataset007_Mr__case1.*`nnunet_pretrain preprocess -d Dataset910"
        ):
            check_domain_records(domains.plans, domains.dataset_json)
        path.write_bytes(content)
    check_domain_records(domains.plans, domains.dataset_json)


def test_a_case_of_stock_preprocessing_is_refused_by_the_training(domains):
    manager = PlansManager(domains.plans)
    case = f"{CT}__case0"
    entry = domains.dataset_json["dataset"][case]
    files = [str(domains.raw / NAME / name) for name in (*entry["images"], entry["label"])]
    for old in domains.data.glob(f"{case}*.b2nd"):
        old.unlink()
    DefaultPreprocessor(verbose=False).run_case_save(
        str(domains.data / case), files[:1], files[1], manager, manager.get_configuration("3d_fullres"),
        domains.dataset_json,
    )  # fmt: skip
    with pytest.raises(ValueError, match=rf"1 of 8 .*{case}.*`nnunet_pretrain preprocess -d Dataset910"):
        check_domain_records(domains.plans, domains.dataset_json)


def test_a_planned_dataset_is_planned_again_with_simple_branches_of_stride_8(domains, tmp_path):
    deep = {**SMALL, "patch_size": [32, 64, 64]}
    wanted = {"branch": "simple", "clip_percentiles": [0.5, 99.5]}
    said = []
    path = make(preset=preset_file(tmp_path, network=deep, domains=wanted), report=said.append)
    plans = read(path)
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    inner = arguments["arch_kwargs"]
    assert inner["n_stages"] == len(inner["features_per_stage"]) == len(inner["strides"]) == len(inner["kernel_sizes"])
    assert len(inner["n_conv_per_stage"]) == len(inner["n_conv_per_stage_decoder"]) + 1 == inner["n_stages"]
    assert max(total_stride(inner["strides"])) == 8
    assert (arguments["branch"], arguments["strides"]) == ("simple", inner["strides"])
    assert not PretrainSettings.from_plans(plans).training.deep_supervision
    assert "deep supervision is off" in " ".join(said)
    alone = plans_of_domain(plans, THICK)["configurations"]["3d_fullres"]["architecture"]
    network = get_network_from_plans(*alone.values(), 1, 2, deep_supervision=False)
    assert network(torch.zeros(1, 1, 16, 24, 32)).shape == (1, 2, 16, 24, 32)
    with pytest.raises(ValueError, match=r"clip_percentiles are None, but the images .* are clipped.*--members again"):
        make(preset="tiny")


def test_without_clipping_nnunet_normalises_by_channel(domains):
    for path in (domains.raw / THICK / "imagesTr").iterdir():  # of which less than three quarters will be left
        image = voxels_of(path).copy()
        image[: len(image) // 2] = 0
        write_volume(path, image, nib.load(path).affine)
    plans = read(make(name="Domains", members=(9, 3), preset="tiny"))
    numbers = PretrainSettings.from_plans(plans).domains.numbers
    assert list(numbers) == [THICK, CT]
    assert numbers[CT].normalization_schemes == ("CTNormalization",)
    assert numbers[THICK].normalization_schemes == ("ZScoreNormalization",)
    assert (numbers[THICK].use_mask_for_norm, numbers[CT].use_mask_for_norm) == ((True,), (False,))
    assert PretrainSettings.from_plans(plans).training == load_preset("tiny").training
    assert plans["foreground_intensity_properties_per_channel"] == {"0": {}}


def test_a_merged_dataset_has_a_branch_per_source(nnunet, sources):
    merge(900, "Merged", [(name, sources / name) for name in SOURCES])
    with pytest.raises(ValueError, match=r"not clipped; choose a preset without clip_percentiles, such as 'default'"):
        make(900, "med3d")
    plans = read(make(900, "tiny"))
    branches = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["branches"]
    content = read(nnunet / "nnUNet_raw/Dataset900_Merged/dataset.json")
    tables = domain_tables(content)
    assert branches == {source: len(tables[source].stored_ids) for source in SOURCES}
    assert plans["nnunet_pretrain"]["domains"]["numbers"].keys() == set(SOURCES)
    source, *others = SOURCES
    kept = [next(c for c, e in content["dataset"].items() if e["source"] == source)]
    kept += [c for c, e in content["dataset"].items() if e["source"] in others]
    dataset = {case: content["dataset"][case] for case in kept}
    change_description(nnunet / "nnUNet_raw/Dataset900_Merged", dataset=dataset, numTraining=len(dataset))
    with pytest.raises(ValueError, match=rf"domain {source} has 1 case and needs at least 2"):
        make(900, "tiny")


CONVOLUTION = {"network": "torch.nn.Conv3d", "strides": [[1, 1, 1]], "patch_size": [8, 8, 8], "batch_size": 2}
BUILT = {"input_argument": "input_channels", "output_argument": "num_classes"}


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ({"spacing_mm": [1, 1, 1]}, "sets spacing_mm, but every domain keeps its own spacing"),
        ({"window_hu": [-100, 200]}, "sets window_hu, but every domain keeps its own"),
        ({"planner": "nnUNetPlannerHuge"}, "nnU-Net has no planner"),
        ({"architecture": CONVOLUTION}, "must take input_channels and num_classes and have an `encoder`"),
        ({"architecture": {**CONVOLUTION, **BUILT}}, "has no argument 'deep_supervision', 'input_channels'"),
        (
            {
                "architecture": {**CONVOLUTION, **BUILT, "strides": [[1, 1, 1], [16, 1, 1]], "patch_size": [16, 8, 8]},
                "domains": {"branch": "simple"},
            },
            "strides of 16 in all, and simple branches allow 8",
        ),
    ],
)
def test_presets_that_cannot_serve_domains_are_refused_before_anything_is_written(preset, message, nnunet, tmp_path):
    write_members(nnunet / "nnUNet_raw", CT)
    with pytest.raises(ValueError, match=message):
        make(name="Domains", members=(3,), preset=preset_file(tmp_path, **preset))
    assert not (nnunet / "nnUNet_raw" / NAME).exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": (3,)}, "needs a number and a name, such as -d 910 -n"),
        ({"name": "Domains"}, "-n and --channel make a new dataset and need --members"),
        ({"channels": ("T1",)}, "need --members"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, message, nnunet):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_network_of_a_preset_gets_branches(domains, tmp_path):
    network = {
        "network": "nnunet_pretrain.networks.medicalnet.MedicalNet",
        **BUILT,
        "arguments": {"depth": 10, "shortcut": "B", "features": 4},
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
        "patch_size": [16, 24, 24],
        "batch_size": 2,
    }
    training = {"deep_supervision": False}
    preset = preset_file(tmp_path, architecture=network, training=training, domains=CLIPPED["domains"])
    architecture = read(make(preset=preset))["configurations"]["3d_fullres"]["architecture"]
    assert architecture["arch_kwargs"]["network_class_name"] == network["network"]
    assert architecture["arch_kwargs"]["arch_kwargs"] == {**network["arguments"], "strides": network["strides"]}
    built = get_network_from_plans(*architecture.values(), 1, 7, deep_supervision=False)
    built.route = CT
    assert built(torch.zeros(2, 1, 16, 24, 24)).shape == (2, 3, 16, 24, 24)


def test_presets_med3d_say_what_med3d_did():
    for name, branch in (("med3d", "unet"), ("med3d_simple", "simple")):
        preset = load_preset(name)
        assert (preset.domains.branch, preset.domains.clip_percentiles) == (branch, (0.5, 99.5))
    assert (preset.training.weight_dice, preset.training.weight_ce, preset.training.deep_supervision) == (0, 1, False)


def test_the_planner_reckons_with_the_labels_of_one_branch():
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from small_checkpoints import NETWORKS

    from nnunet_pretrain.planning.plan_domains import _for_one_branch

    class_name, arguments, imported = NETWORKS["PlainConvUNet"]
    planner = _for_one_branch(ExperimentPlanner, 3)

    def memory(of, outputs):
        return of.static_estimate_VRAM_usage((32, 32, 32), 1, outputs, class_name, arguments, imported)

    assert planner.__name__ == "ExperimentPlanner"
    assert memory(planner, 200) == memory(ExperimentPlanner, 3) < memory(ExperimentPlanner, 200)
    assert memory(planner, 2) == memory(ExperimentPlanner, 2)
