"""Leakage guard: every target image that was in the pre-training is named, no other is, and not knowing is said."""

import json

import nibabel as nib
import numpy as np
import pytest
from nnunet_runs import SMALL, TARGET_LABELS
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunet_pretrain.conversion import merge
from nnunet_pretrain.conversion.duplicates import FINGERPRINTS
from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.phantom.datasets import write_phantom_target
from nnunet_pretrain.transfer.leakage import find_leaked, folds_without, moved_to_training, write_list
from nnunet_pretrain.transfer.plan_transfer import PlanOptions, plan_transfer
from nnunet_pretrain.transfer.target_fingerprints import CACHE

LABELS = {"liver": ("liver",), "spleen": ("spleen",)}
COARSE = {"spacing_mm": (9.0, 9.0, 9.0)}
TARGET = "Dataset902_Target"


@pytest.fixture
def merged(nnunet, sources):
    """A merged dataset's folder and a checkpoint as one trained on it describes itself."""
    folder = merge(900, "Merged", [("BTCV", sources / "BTCV"), ("KiTS23", sources / "KiTS23")])
    return folder, checkpoint(read_json(folder / FINGERPRINTS))


def checkpoint(fingerprints, cases=4, **transfer):
    plans = {"dataset_name": "Dataset900_Merged", "nnunet_pretrain": {"transfer": transfer}}
    card = {"card": {"fingerprints": fingerprints}}
    return {"init_args": {"plans": plans, "dataset_json": {"numTraining": cases}, "nnunet_pretrain": card}}


def image_of(folder, position):
    """Returns name and image of a pre-training case; images are referenced where they lie."""
    case, entry = sorted(read_json(folder / "dataset.json")["dataset"].items())[position]
    return case, nib.load(folder / entry["images"][0])


def target(nnunet, train=(), test=()):
    """Writes a target with five phantoms of its own and one test image, and copies under names of their own."""
    folder = nnunet / "nnUNet_raw" / TARGET
    write_phantom_target(folder, LABELS, range(70, 74), [74], [75], **COARSE)
    for part, copies in (("Tr", train), ("Ts", test)):
        for name, image in copies:
            nib.save(image, folder / f"images{part}" / f"{name}_0000.nii.gz")
            nib.save(
                nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), folder / f"labels{part}/{name}.nii.gz"
            )
    content = read_json(folder / "dataset.json")
    write_json(folder / "dataset.json", {**content, "numTraining": 5 + len(train)})
    (folder / "splits_final.json").unlink()
    return folder


def changed(image):
    """A near copy: mirrored, cropped, windowed, in another type."""
    voxels = np.asanyarray(image.dataobj)[::-1, 2:, :-2].clip(-160, 240).astype(np.float32)
    return nib.Nifti1Image(voxels, np.diag([3.0, 3, 3, 1]))


def test_copies_are_named_with_their_origin_and_kind(nnunet, merged, tmp_path):
    folder, content = merged
    (first, image), (second, other), (third, tested) = (image_of(folder, i) for i in range(3))
    target(nnunet, train=[("renamed", image), ("altered", changed(other))], test=[("hidden", changed(tested))])
    leakage = find_leaked(902, content)
    found = [(c.case, c.place, c.pretraining_case, c.exact) for c in leakage.cases]
    assert found == [
        ("altered", "training", second, False),
        ("renamed", "training", first, True),
        ("hidden", "test", third, False),
    ]
    assert leakage.verdict == "found"
    assert leakage.leaked() == {"renamed", "altered"}
    assert leakage.leaked("test") == {"hidden"}
    assert leakage.compared == {"training": 7, "test": 2}
    text = "\n".join(leakage.lines())
    assert "WARNING, leakage: 2 training and 1 test cases of Dataset902_Target were in the pre-training" in text
    assert f"renamed (training) is {first} of the pre-training (identical)" in text
    assert f"altered (training) is {second} of the pre-training (nearly, " in text
    write_list(leakage, tmp_path / "leaked.json")
    written = json.loads((tmp_path / "leaked.json").read_text(encoding="utf-8"))
    assert written["verdict"] == "found"
    assert [c["case"] for c in written["cases"]] == ["altered", "renamed", "hidden"]


def test_a_target_of_its_own_is_clean(nnunet, merged):
    target(nnunet)
    leakage = find_leaked(902, merged[1])
    assert leakage.verdict == "none found"
    assert leakage.lines() == [
        "leakage: none found of 5 training and 1 test cases of Dataset902_Target, compared with 4 images of "
        "Dataset900_Merged"
    ]
    assert folds_without(TARGET, leakage) is None


def test_a_leak_in_a_later_channel_is_found(nnunet, merged):
    folder = target(nnunet)
    case, image = image_of(merged[0], 0)
    rng = np.random.default_rng(0)
    for path in sorted((folder / "imagesTr").glob("*_0000.nii.gz")):
        own = nib.load(path)
        noise = nib.Nifti1Image(rng.integers(0, 4000, own.shape).astype(np.int16), own.affine)
        nib.save(
            image if path.name.startswith("case_0072") else noise, path.with_name(path.name.replace("_0000", "_0001"))
        )
    content = read_json(folder / "dataset.json")
    write_json(folder / "dataset.json", {**content, "channel_names": {"0": "PET", "1": "CT"}})
    leakage = find_leaked(902, merged[1])
    assert [(c.case, c.pretraining_case) for c in leakage.cases] == [("case_0072", case)]
    assert leakage.compared == {"training": 5, "test": 1}


def test_many_leaks_are_shown_shortly_and_written_in_full(nnunet, merged):
    copies = [(f"copy_{i:02d}", image_of(merged[0], i % 4)[1]) for i in range(12)]
    target(nnunet, train=copies)
    leakage = find_leaked(902, merged[1])
    assert len(leakage.as_dict()["cases"]) == 12
    assert len(leakage.lines()) == 12
    assert leakage.lines()[-1] == "  ... and 2 more"


@pytest.mark.parametrize("fingerprints", [{}, None])
def test_a_checkpoint_without_fingerprints_is_unknown_not_clean(nnunet, fingerprints):
    target(nnunet)
    content = checkpoint({})
    if fingerprints is None:
        del content["init_args"]["nnunet_pretrain"]
    leakage = find_leaked(902, content)
    assert leakage.verdict == "unknown"
    assert leakage.lines() == [
        "leakage: unknown whether images of Dataset902_Target were in the pre-training: the checkpoint holds no "
        "fingerprints of its training images"
    ]


def test_images_the_checkpoint_does_not_list_leave_a_doubt(nnunet, merged):
    target(nnunet)
    fingerprints = read_json(merged[0] / FINGERPRINTS)
    fewer = find_leaked(902, checkpoint(fingerprints, cases=9))
    assert fewer.verdict == "unknown"
    assert "the pre-training had 9 images, the checkpoint holds the fingerprints of 4" in fewer.lines()[-1]
    second_hand = find_leaked(902, checkpoint(fingerprints, checkpoint="/data/first.pth"))
    assert second_hand.verdict == "unknown"
    assert "itself started from /data/first.pth" in second_hand.lines()[-1]


@pytest.mark.parametrize("damaged", [["a"], {"a": {"voxels": "00", "sketch": "AAAA"}}, {"a": {"voxels": "00"}}])
def test_damaged_fingerprints_are_refused(nnunet, damaged):
    target(nnunet)
    with pytest.raises(ValueError, match="fingerprints in the checkpoint are damaged"):
        find_leaked(902, checkpoint(damaged))


def test_an_unreadable_image_is_unknown_and_the_others_are_compared(nnunet, merged):
    folder = target(nnunet, train=[("renamed", image_of(merged[0], 0)[1])])
    (folder / "imagesTr/case_0070_0000.nii.gz").write_bytes(b"nothing")
    leakage = find_leaked(902, merged[1])
    assert leakage.leaked() == {"renamed"}
    assert set(leakage.unread) == {"case_0070"}
    assert leakage.compared["training"] == 5
    assert "unknown for 1 cases, which were not compared: case_0070" in leakage.lines()[-1]


def test_known_images_are_not_read_again_and_changed_ones_are(nnunet, merged):
    folder = target(nnunet)
    find_leaked(902, merged[1])
    cache = nnunet / "nnUNet_preprocessed" / TARGET / CACHE
    entries = read_json(cache)
    assert len(entries) == 6
    taken = str(folder / "imagesTr/case_0071_0000.nii.gz")
    case, image = image_of(merged[0], 0)
    known = merged[1]["init_args"]["nnunet_pretrain"]["card"]["fingerprints"][case]
    write_json(cache, {**entries, taken: {**entries[taken], **known}})
    assert find_leaked(902, merged[1]).leaked() == {"case_0071"}  # from the cache, the image itself is another
    nib.save(image, folder / "imagesTr/case_0073_0000.nii.gz")
    assert find_leaked(902, merged[1]).leaked() == {"case_0071", "case_0073"}
    cache.write_text("{", encoding="utf-8")
    assert find_leaked(902, merged[1]).leaked() == {"case_0073"}


def test_nnunets_folds_keep_leaked_cases_for_training_only(nnunet, merged):
    target(nnunet, train=[("copy", image_of(merged[0], 0)[1])])
    cases = [*(f"case_{seed:04d}" for seed in range(70, 75)), "copy"]
    stock = generate_crossval_split(cases, seed=12345, n_splits=5)
    folds = folds_without(TARGET, find_leaked(902, merged[1]))
    assert [set(fold.val) for fold in folds] == [set(fold["val"]) - {"copy"} for fold in stock]
    assert all("copy" in fold.train for fold in folds)
    assert all(sorted(fold.train + fold.val) == cases for fold in folds)


def test_nnunets_folds_of_leaked_cases_only_are_refused(nnunet, merged):
    target(nnunet, train=[(f"copy_{i}", image_of(merged[0], i)[1]) for i in range(2)])
    with pytest.raises(ValueError, match="fold 3 would have no validation case left"):
        folds_without(TARGET, find_leaked(902, merged[1]))


def test_too_few_cases_for_nnunets_folds_are_refused(nnunet, merged):
    folder = target(nnunet, train=[("copy", image_of(merged[0], 0)[1])])
    for seed in (70, 71):
        for part in (f"imagesTr/case_{seed:04d}_0000.nii.gz", f"labelsTr/case_{seed:04d}.nii.gz"):
            (folder / part).unlink()
    with pytest.raises(ValueError, match="4 cases, too few for the 5 folds"):
        folds_without(TARGET, find_leaked(902, merged[1]))


def test_the_targets_own_folds_are_honoured(nnunet, merged):
    folder = target(nnunet, train=[("copy", image_of(merged[0], 0)[1])])
    own = [f"case_{seed:04d}" for seed in range(70, 75)]
    splits = [{"train": own[:3], "val": [*own[3:], "copy"]}, {"train": [*own[3:], "copy"], "val": own[:3]}]
    write_json(folder / "splits_final.json", splits)
    folds = folds_without(TARGET, find_leaked(902, merged[1]))
    assert [fold.val for fold in folds] == [tuple(own[3:]), tuple(own[:3])]
    assert [fold.train for fold in folds] == [(*own[:3], "copy"), (*own[3:], "copy")]


def test_a_fold_of_leaked_cases_only_is_refused():
    folds = [{"train": ["a"], "val": ["b", "c"]}, {"train": ["b", "c"], "val": ["a"]}]
    with pytest.raises(ValueError, match="fold 1 would have no validation case left: all 1 were in the pre-training"):
        moved_to_training({"a"}, folds)
    moved = moved_to_training({"b"}, folds)
    assert [(fold.train, fold.val) for fold in moved] == [(("a", "b"), ("c",)), (("b", "c"), ("a",))]


@pytest.mark.slow
def test_plan_transfer_names_leaked_cases_and_keeps_them_out_of_every_validation(pretrained, monkeypatch):
    for variable, value in pretrained.environment.items():
        monkeypatch.setenv(variable, value)
    raw = pretrained.root / "nnUNet_raw/Dataset930_Leaked"
    # The pre-training has the phantom with seed 0, as BTCV; here it is to be held out, beside another one.
    write_phantom_target(raw, TARGET_LABELS, [80], [0, 81], [], **SMALL)
    options = PlanOptions(dataset=930, checkpoint=pretrained.checkpoint, exclude_leaked=True, num_processes=1)
    said = []
    planned = plan_transfer(options, said.append)
    assert any(line.startswith("WARNING, leakage: 1 training cases of Dataset930_Leaked") for line in said)
    folder = pretrained.root / "nnUNet_preprocessed/Dataset930_Leaked"
    found = read_json(folder / "leakage_nnUNetTransferPlans_Merged.json")
    assert [entry["case"] for entry in found["cases"]] == ["case_0000"]
    for plans in (planned.transfer, planned.scratch):
        folds = read_json(plans)["nnunet_pretrain"]["folds"]
        assert [{part: sorted(fold[part]) for part in fold} for fold in folds] == [
            {"train": ["case_0000", "case_0080"], "val": ["case_0081"]}
        ]
