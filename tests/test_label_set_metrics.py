"""Counts and summary of partially labelled cases, against the rule voxel by voxel."""

import math

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from nnunet_pretrain.labels import LabelScheme, LabelSetTable, LabelSpace
from nnunet_pretrain.training.label_set_metrics import evaluate_folder, hard_counts, hard_counts_by_sample
from nnunet_pretrain.training.label_sets import LabelSets
from nnunet_pretrain.training.surface_distance import surface_dice

SPACE = LabelSpace(name="five", structures=("liver", "liver_tumor", "kidney_left", "kidney_right", "kidney_tumor"))
COMPLETE = {i: (name,) for i, name in enumerate(SPACE.names)}
KITS = {0: ("background", "liver", "liver_tumor"), 3: ("kidney_left", "kidney_right"), 5: ("kidney_tumor",)}
LIVER = {
    0: ("background", "kidney_left", "kidney_right", "kidney_tumor"),
    1: ("liver", "liver_tumor"),
    SPACE.ignore_id: SPACE.names,
}
SCHEMES = tuple(
    LabelScheme(name=name, sets=sets) for name, sets in {"complete": COMPLETE, "KiTS": KITS, "liver": LIVER}.items()
)
CASES = {"all_0": 0, "kits_0": 1, "kits_1": 1, "liver_0": 2}
TABLE = LabelSetTable(SPACE, SCHEMES, CASES)
SOURCES = {"all_0": "AbdomenAtlas", "kits_0": "KiTS23", "kits_1": "KiTS23", "liver_0": "LiTS"}
KIDNEYS = "kidney_left+kidney_right"
AFFINE = np.array([[-2.0, 0, 0, 90], [0, 1.0, 0, -30], [0, 0, 0.5, 12], [0, 0, 0, 1]])
BOX = np.zeros((12, 12, 12), dtype=bool)
BOX[2:7, 2:7, 2:7] = True


def random_table(rng):
    """Schemes whose foreground sets hold, besides their own structure, others at random."""
    schemes = []
    for index in range(4):
        stored = sorted(rng.choice(range(1, 6), size=rng.integers(1, 6), replace=False).tolist())
        sets = {i: {SPACE.names[i], *rng.choice(SPACE.names[1:], size=rng.integers(0, 3)).tolist()} for i in stored}
        sets[0] = {"background", *rng.choice(SPACE.names[1:], size=rng.integers(0, 4)).tolist()}
        if index % 2:
            sets[SPACE.ignore_id] = set(SPACE.names)
        schemes.append(LabelScheme(name=str(index), sets={i: tuple(sorted(s)) for i, s in sets.items()}))
    return LabelSetTable(SPACE, tuple(schemes), {})


def group_masks(table, scheme, stored_id, reference, prediction):
    """Voxels of a group in the reference and in the prediction, straight from the rule, voxel by voxel."""
    own = {SPACE.names[c] for c in np.flatnonzero(table.member[scheme, stored_id])}
    masks = np.zeros((2, *reference.shape), dtype=bool)
    for where in np.ndindex(reference.shape):
        label, predicted = reference[where], SPACE.names[prediction[where]]
        truth = {SPACE.names[c] for c in np.flatnonzero(table.member[scheme, label])}
        masks[0][where] = label == stored_id
        masks[1][where] = predicted in own and (label == stored_id or predicted not in truth)
    return masks


@pytest.mark.parametrize("seed", range(8))
def test_counts_are_those_of_the_rule_voxel_by_voxel(seed):
    rng = np.random.default_rng(seed)
    table = random_table(rng)
    schemes = rng.integers(0, 4, size=5)
    reference = np.stack([rng.choice(list(table.schemes[s].sets), size=150) for s in schemes])
    prediction = rng.integers(0, len(SPACE.names), size=reference.shape)
    expected = np.zeros((3, 5, len(table.groups)))
    for sample, scheme in enumerate(schemes):
        for stored_id in np.flatnonzero(table.decidable[scheme]):
            group = table.group_of_id[scheme, stored_id]
            is_true, is_predicted = group_masks(table, scheme, stored_id, reference[sample], prediction[sample])
            expected[:, sample, group] = (
                (is_true & is_predicted).sum(),
                (~is_true & is_predicted).sum(),
                (is_true & ~is_predicted).sum(),
            )
    sets = LabelSets(table)
    rows = sets.encode(torch.from_numpy(reference)[:, None], torch.from_numpy(schemes))[:, 0]
    counts = hard_counts_by_sample(sets, torch.from_numpy(prediction), rows)
    assert np.array_equal(np.stack([values.numpy() for values in counts]), expected)
    assert all(values.dtype == torch.float64 for values in counts)
    summed = hard_counts(sets, torch.from_numpy(prediction), rows)
    assert np.array_equal(np.stack([values.numpy() for values in summed]), expected.sum(1))


def test_samples_of_one_source_add_up_to_its_counts():
    sets = LabelSets(TABLE)
    generator = torch.Generator().manual_seed(3)
    schemes = torch.tensor([1, 2, 1])
    stored = [torch.tensor(list(SCHEMES[s].sets)) for s in schemes]
    target = torch.stack([ids[torch.randint(len(ids), (200,), generator=generator)] for ids in stored])
    prediction = torch.randint(6, (3, 200), generator=generator)
    rows = sets.encode(target[:, None], schemes)[:, 0]
    source_of_sample = torch.tensor([1, 0, 1])
    for by_sample, kits, lits in zip(
        hard_counts_by_sample(sets, prediction, rows),
        hard_counts(sets, prediction[::2], rows[::2]),
        hard_counts(sets, prediction[1:2], rows[1:2]),
        strict=True,
    ):
        by_source = torch.zeros(2, by_sample.shape[1], dtype=by_sample.dtype).index_add(0, source_of_sample, by_sample)
        assert torch.equal(by_source, torch.stack([lits, kits]))


def write(folder, name, array, affine=AFFINE):
    folder.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(array, dtype=np.uint8), affine), folder / f"{name}.nii.gz")


@pytest.fixture
def folders(tmp_path):
    """Random cases, different for every source, with blobs large enough to have a surface."""
    rng = np.random.default_rng(5)
    shape = (14, 12, 10)
    for case, scheme in CASES.items():
        stored = np.array(list(SCHEMES[scheme].sets))
        drawn = gaussian_filter(rng.normal(size=(len(stored), *shape)), (0, 2, 2, 2)).argmax(0)
        noisy = np.where(rng.random(shape) < 0.2, rng.integers(0, 6, shape), stored[drawn])
        write(tmp_path / "references", case, stored[drawn])
        write(tmp_path / "predictions", case, np.where(noisy == SPACE.ignore_id, 1, noisy))
    return tmp_path


def evaluate(folder, cases=tuple(CASES), **kwargs):
    kwargs = {"sources": SOURCES, "num_processes": 1, **kwargs}
    return evaluate_folder(TABLE, cases, folder / "references", folder / "predictions", ".nii.gz", **kwargs)


def load(folder, case):
    return np.asanyarray(nib.load(folder / f"{case}.nii.gz").dataobj)


def test_every_metric_of_a_case_follows_from_the_rule(folders):
    entries = evaluate(folders, nsd_tolerance_mm=1.2)["metric_per_case"]
    assert [entry["case"] for entry in entries] == list(CASES)
    for entry in entries:
        case, scheme = entry["case"], CASES[entry["case"]]
        assert (entry["source"], entry["scheme"]) == (SOURCES[case], SCHEMES[scheme].name)
        reference, prediction = (load(folders / part, case) for part in ("references", "predictions"))
        ignored = reference == SPACE.ignore_id
        ids = np.flatnonzero(TABLE.decidable[scheme])
        assert list(entry["metrics"]) == [TABLE.groups[TABLE.group_of_id[scheme, i]] for i in ids]
        for stored_id, metrics in zip(ids, entry["metrics"].values(), strict=True):
            truth, predicted = group_masks(TABLE, scheme, stored_id, reference, prediction)
            both, false_positive = (truth & predicted).sum(), (predicted & ~truth).sum()
            assert metrics["Dice"] == pytest.approx(2 * both / (truth.sum() + predicted.sum()))
            assert metrics["IoU"] == pytest.approx(both / (truth | predicted).sum())
            assert (metrics["TP"], metrics["FP"], metrics["n_ref"]) == (both, false_positive, truth.sum())
            assert (metrics["FN"], metrics["n_pred"]) == (truth.sum() - both, predicted.sum())
            assert metrics["FP_ml"] == pytest.approx(false_positive * 2.0 * 1.0 * 0.5 / 1000)
            assert metrics["NSD"] == pytest.approx(surface_dice(truth, predicted, (2, 1, 0.5), 1.2, ignored))


def test_sources_are_averaged_apart_and_over_decidable_groups_only(folders):
    summary = evaluate(folders)
    entries = summary["metric_per_case"]
    assert {source: part["cases"] for source, part in summary["per_source"].items()} == {
        "AbdomenAtlas": 1,
        "KiTS23": 2,
        "LiTS": 1,
    }
    kits = summary["per_source"]["KiTS23"]
    assert set(kits["mean"]) == {KIDNEYS, "kidney_tumor"}
    assert set(summary["per_source"]["LiTS"]["mean"]) == {"liver+liver_tumor"}
    for key in ("Dice", "NSD", "FP_ml", "TP"):
        per_case = [[entry["metrics"][group][key] for group in kits["mean"]] for entry in entries[1:3]]
        assert [kits["mean"][group][key] for group in kits["mean"]] == pytest.approx(np.mean(per_case, axis=0))
        assert kits["foreground_mean"][key] == pytest.approx(np.mean(per_case))
    tumours = [entries[i]["metrics"]["kidney_tumor"]["Dice"] for i in (0, 1, 2)]
    assert summary["mean"]["kidney_tumor"]["Dice"] == pytest.approx(np.mean(tumours))
    assert "per_source" not in evaluate(folders, sources=None)


def test_processes_give_the_same_summary(folders):
    serial, parallel = (evaluate(folders, num_processes=n) for n in (1, 2))
    assert parallel == serial


def test_absent_groups_and_unannotated_structures(tmp_path):
    reference = np.where(BOX, 3, 0)
    write(tmp_path / "references", "kits_0", reference)
    write(tmp_path / "predictions", "kits_0", np.where(BOX, 4, 1))  # the other kidney in a sea of liver
    write(tmp_path / "references", "kits_1", 0 * reference)
    write(tmp_path / "predictions", "kits_1", np.where(BOX, 5, 0))  # a tumour out of nowhere
    summary = evaluate(tmp_path, ["kits_0", "kits_1"])
    right, wrong = (entry["metrics"] for entry in summary["metric_per_case"])
    assert (right[KIDNEYS]["Dice"], right[KIDNEYS]["NSD"], right[KIDNEYS]["FP_ml"]) == (1, 1, 0)
    assert all(math.isnan(right["kidney_tumor"][key]) for key in ("Dice", "IoU", "NSD"))
    assert right["kidney_tumor"]["FP_ml"] == 0
    assert (wrong["kidney_tumor"]["Dice"], wrong["kidney_tumor"]["NSD"]) == (0, 0)
    assert wrong["kidney_tumor"]["FP_ml"] == pytest.approx(0.125)
    mean = summary["mean"]["kidney_tumor"]
    assert (mean["Dice"], mean["FP_ml"]) == (0, pytest.approx(0.125 / 2))  # Dice of one case, volume of both


def test_nothing_is_wrong_on_ignored_voxels(tmp_path):
    reference = np.where(BOX, 1, 0)
    reference[7:10] = SPACE.ignore_id
    prediction = np.where(BOX, 2, 0)
    prediction[7:10, 2:9] = 2  # goes on into the unknown, and is wider there
    write(tmp_path / "references", "liver_0", reference)
    write(tmp_path / "predictions", "liver_0", prediction)
    metrics = evaluate(tmp_path, ["liver_0"], nsd_tolerance_mm=0.1)["metric_per_case"][0]["metrics"]
    assert list(metrics) == ["liver+liver_tumor"]
    assert [metrics["liver+liver_tumor"][key] for key in ("Dice", "NSD", "FP")] == [1, 1, 0]
    prediction[1, 2:7, 2:7] = 1
    write(tmp_path / "predictions", "liver_0", prediction)
    metrics = evaluate(tmp_path, ["liver_0"], nsd_tolerance_mm=0.1)["metric_per_case"][0]["metrics"]
    assert metrics["liver+liver_tumor"]["FP"] == 25
    assert metrics["liver+liver_tumor"]["NSD"] < 1


def test_errors_name_the_files(folders):
    prediction = folders / "predictions" / "kits_1.nii.gz"
    array = load(folders / "predictions", "kits_1")
    write(folders / "predictions", "kits_1", array[1:])
    with pytest.raises(ValueError, match=r"references/kits_1.*predictions/kits_1.*\(14, 12, 10\) and \(13, 12, 10\)"):
        evaluate(folders)
    moved = AFFINE.copy()
    moved[2, 3] += 1.5
    write(folders / "predictions", "kits_1", array, moved)
    with pytest.raises(ValueError, match=r"references/kits_1.*predictions/kits_1.* lie 1.5 mm apart"):
        evaluate(folders, num_processes=2)
    write(folders / "predictions", "kits_1", array + 6)
    with pytest.raises(ValueError, match=r"predictions/kits_1.*ids 0-5.*another dataset"):
        evaluate(folders)
    prediction.write_bytes(prediction.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"predictions/kits_1.* cannot be read"):
        evaluate(folders)
    prediction.unlink()
    with pytest.raises(FileNotFoundError, match=r"prediction .*predictions/kits_1"):
        evaluate(folders)
    with pytest.raises(ValueError, match="unheard"):
        evaluate(folders, ["unheard"])
    with pytest.raises(ValueError, match=r"no source .*'all_0'"):
        evaluate(folders, sources={})


def test_a_header_rounded_by_another_reader_is_the_same_grid(folders):
    before = evaluate(folders, ["all_0"])["mean"]
    write(folders / "predictions", "all_0", load(folders / "predictions", "all_0"), AFFINE + 1e-4)
    assert evaluate(folders, ["all_0"])["mean"] == before
