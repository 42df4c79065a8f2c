"""Duplicates: every copy of an image is found, no two patients are taken for one, and folds keep copies together."""

import gzip
import json
import re
from concurrent.futures import ProcessPoolExecutor
from itertools import permutations
from multiprocessing import get_context

import nibabel as nib
import numpy as np
import pytest

from nnunet_pretrain.cli import main
from nnunet_pretrain.conversion import MergeOptions, merge
from nnunet_pretrain.conversion.duplicates import Pair, find_pairs, groups_of, make_folds, to_drop
from nnunet_pretrain.conversion.fingerprint import SKETCH_SIZE, Fingerprint, fingerprint, read_fingerprint
from nnunet_pretrain.conversion.volume import Grid
from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.phantom import generate_phantom
from nnunet_pretrain.phantom.anatomy import PHASES
from nnunet_pretrain.phantom.generator import FIELDS_OF_VIEW, Appearance

NUMBER = 201
LAYOUT = "layouts: [{images: 'ct/{case}.nii.gz', labels: 'labels/{case}.nii.gz'}]\nlabels: {1: aorta}\n"


def appearance(seed):
    """Returns a random look, one without noise, and one with little or much and finer or coarser noise, in turn."""
    phase = PHASES[seed // 3 % len(PHASES)]
    noisy = Appearance(phase=phase, noise_hu=2.0 + seed % 20, noise_grain=seed % 5 / 4)
    return (None, Appearance(phase=phase, noise_hu=0.0), noisy)[seed % 3]


@pytest.fixture(scope="module")
def phantoms():
    """Many patients of all phases, fields of view and noise levels."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        made = [
            pool.submit(
                generate_phantom,
                seed,
                spacing_mm=(9.0, 9.0, 9.0),
                appearance=appearance(seed),
                field_of_view=FIELDS_OF_VIEW[seed % len(FIELDS_OF_VIEW)],
            )
            for seed in range(NUMBER)
        ]
        return [future.result() for future in made]


@pytest.fixture(scope="module")
def fingerprints(phantoms):
    return {f"patient {seed}": of(phantom.image, phantom.affine) for seed, phantom in enumerate(phantoms)}


def of(hu, affine=np.eye(4)):  # noqa: B008 (an array nobody changes)
    return fingerprint(hu, Grid(hu.shape, affine))


def body(hu):
    inside = np.argwhere(hu > -300)
    low, high = inside.min(axis=0), inside.max(axis=0) + 1
    return hu[tuple(slice(*span) for span in zip(low, high, strict=True))]


ARRAY_COPIES = {
    **{f"clipped to {window}": window for window in ((-160, 240), (-175, 250), (-1000, 1000), (-100, 240))},
    **{f"mirrored along {axis}": axis for axis in range(3)},
    **{f"axes {axes}": axes for axes in permutations(range(3)) if axes != (0, 1, 2)},
    "body": body,
    "middle slices": lambda hu: hu[:, :, hu.shape[2] // 5 : -(hu.shape[2] // 5)],
    "lower half": lambda hu: hu[:, :, : hu.shape[2] // 2],
    "upper half": lambda hu: hu[:, :, hu.shape[2] // 2 :],
    "body, clipped, mirrored, exchanged": lambda hu: body(hu).clip(-160, 240)[::-1].transpose(2, 1, 0),
}  # fmt: skip


def copy_of(hu, change):
    if callable(change):
        return change(hu)
    if isinstance(change, int):
        return np.flip(hu, change)
    return hu.clip(*change) if len(change) == 2 else hu.transpose(change)


def test_no_two_patients_look_alike(fingerprints):
    assert len(fingerprints) >= 200
    assert find_pairs(fingerprints) == []
    assert len({content.voxels for content in fingerprints.values()}) == len(fingerprints)
    assert min(len(content.sketch) for content in fingerprints.values()) > 20


def test_every_image_is_found_in_itself(fingerprints):
    pairs = find_pairs(fingerprints, {f"copy of {case}": content for case, content in fingerprints.items()})
    assert [(pair.first, pair.second, pair.exact) for pair in pairs] == sorted(
        (case, f"copy of {case}", True) for case in fingerprints
    )
    assert all(pair.common == len(fingerprints[pair.first].sketch) for pair in pairs)


@pytest.mark.parametrize("name", ARRAY_COPIES)
def test_every_changed_copy_is_found_and_nothing_else(phantoms, fingerprints, name):
    change = ARRAY_COPIES[name]
    copies = {f"patient {seed}": of(copy_of(phantom.image, change)) for seed, phantom in enumerate(phantoms)}
    pairs = find_pairs(fingerprints, copies)
    assert [(pair.first, pair.second) for pair in pairs] == sorted((case, case) for case in copies)


def test_copies_of_two_patients_in_one_dataset_form_two_groups(phantoms):
    images = {
        f"{seed} {name}": of(copy_of(phantoms[seed].image, c)) for seed in (0, 3) for name, c in ARRAY_COPIES.items()
    }
    groups = groups_of(find_pairs(images))
    assert groups == [sorted(case for case in images if case[0] == first) for first in "03"]


def saved(path, array, affine, ending=".nii.gz", inter=0):
    image = nib.Nifti1Image(array, affine)
    content = bytearray(image.to_bytes())
    block = np.frombuffer(content, image.header.template_dtype, 1).copy()
    block["scl_slope"], block["scl_inter"] = 1, inter
    content[: block.nbytes] = block.tobytes()
    path = path.with_name(path.name + ending)
    path.write_bytes(gzip.compress(content, 9) if ending.endswith("gz") else content)
    return path


@pytest.mark.parametrize("seed", [0, 1, 2, 5])
def test_a_copy_in_another_file_is_identical(tmp_path, phantoms, fingerprints, seed):
    hu, affine = phantoms[seed].image, phantoms[seed].affine
    files = [saved(tmp_path / "gz", hu, affine), saved(tmp_path / "plain", hu, affine, ".nii")]
    for dtype in ("float32", "float64", "int32", ">i2"):
        files.append(saved(tmp_path / dtype, hu.astype(dtype), affine))
    files.append(saved(tmp_path / "uint16", (hu.astype(int) + 2000).astype(np.uint16), affine, inter=-2000))
    files.append(saved(tmp_path / "nearly", hu + np.float32(0.01), affine))
    for codes in ("LPS", "IPL", "ASR", "RPI"):
        turned = nib.Nifti1Image(hu, affine).as_reoriented(nib.orientations.axcodes2ornt(codes))
        files.append(saved(tmp_path / codes, np.asarray(turned.dataobj), turned.affine))
    found = {path.name: read_fingerprint(path) for path in files}
    pairs = find_pairs(found, {"original": fingerprints[f"patient {seed}"]})
    assert [(pair.first, pair.exact) for pair in pairs] == sorted((path.name, True) for path in files)


def test_a_fingerprint_survives_json(fingerprints):
    content = fingerprints["patient 0"]
    again = Fingerprint.from_dict(json.loads(json.dumps(content.as_dict())))
    assert (again.voxels, again.sketch.tolist()) == (content.voxels, content.sketch.tolist())
    assert again.sketch.dtype == np.uint64
    assert len(again.sketch) <= SKETCH_SIZE


@pytest.mark.parametrize("shape", [(2, 30, 30), (1, 1, 1), (3, 3, 3), (30, 30, 30)])
def test_images_without_patterns_match_only_when_they_are_equal(shape):
    flat, other = np.full(shape, 40, np.int16), np.full(shape, 40, np.int16)
    other[0, 0, 0] = 41
    pairs = find_pairs({"flat": of(flat), "same": of(flat.copy()), "other": of(other)})
    assert pairs == [Pair("flat", "same", True, 0)]


def test_groups_are_transitive():
    pairs = [Pair(a, b, True, 9) for a, b in ("ab", "cd", "ef", "dg", "bc", "hi")]
    assert groups_of(pairs) == [["a", "b", "c", "d", "g"], ["e", "f"], ["h", "i"]]
    assert groups_of(reversed(pairs)) == groups_of(pairs)
    assert groups_of([]) == []


def test_many_copies_of_one_image_are_grouped_quickly():
    names = [f"{i:04d}" for i in range(600)]
    assert groups_of(Pair(a, b, True, 9) for a in names for b in names if a < b) == [names]


def test_of_equal_images_the_case_of_the_source_named_first_stays():
    order = ["LiTS_2", "LiTS_1", "MSD_1", "MSD_2", "AMOS_1"]
    assert to_drop([["AMOS_1", "LiTS_1", "MSD_1"], ["LiTS_2", "MSD_2"]], order) == {
        "MSD_1": "LiTS_1",
        "AMOS_1": "LiTS_1",
        "MSD_2": "LiTS_2",
    }
    assert to_drop([["LiTS_1", "LiTS_2"]], order) == {"LiTS_1": "LiTS_2"}
    assert to_drop([], order) == {}


SOURCE_OF = {f"{source}_{i:02d}": source for source, number in (("A", 23), ("B", 7), ("C", 40)) for i in range(number)}
GROUPS = [["A_00", "B_00"], ["A_01", "A_02", "C_00", "C_01"], ["B_05", "C_39"]]


def test_folds_validate_each_case_once_and_keep_copies_together():
    folds = make_folds(SOURCE_OF, GROUPS)
    assert len(folds) == 5
    assert sorted(case for fold in folds for case in fold["val"]) == sorted(SOURCE_OF)
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == sorted(SOURCE_OF)
        for group in GROUPS:
            assert len({case in fold["val"] for case in group}) == 1


def test_folds_spread_every_source():
    for groups, slack in (([], 1), (GROUPS, 3)):
        for source in "ABC":
            numbers = [sum(SOURCE_OF[case] == source for case in fold["val"]) for fold in make_folds(SOURCE_OF, groups)]
            assert max(numbers) - min(numbers) <= slack
            assert min(numbers) >= 1


def test_folds_do_not_depend_on_the_order_of_cases():
    shuffled = dict(sorted(SOURCE_OF.items(), key=lambda item: item[0][::-1]))
    assert make_folds(shuffled, GROUPS[::-1]) == make_folds(SOURCE_OF, GROUPS)


@pytest.mark.parametrize("number", range(7))
def test_few_cases_make_few_folds(number):
    folds = make_folds({f"A_{i}": "A" for i in range(number)}, [])
    assert len(folds) == (min(number, 5) if number > 1 else 0)
    assert all(fold["train"] and fold["val"] for fold in folds)
    assert make_folds({"A_0": "A", "A_1": "A"}, [["A_0", "A_1"]]) == []


def write_images(folder, phantoms, changes):
    """Writes images of patients as a source, each changed in its own way, with an aorta of one voxel."""
    for seed, change in changes.items():
        hu = change(phantoms[seed].image)
        labels = np.zeros(hu.shape, np.uint8)
        labels[1, 1, 1] = 1
        for kind, array in (("ct", hu), ("labels", labels)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            nib.save(
                nib.Nifti1Image(np.ascontiguousarray(array), phantoms[seed].affine), folder / kind / f"{seed}.nii.gz"
            )


@pytest.fixture
def overlapping(nnunet, tmp_path, phantoms):
    """Two sources that share two patients, one of them as a mirrored and clipped copy."""
    same = {seed: lambda hu: hu for seed in range(0, 12, 2)}
    write_images(tmp_path / "First", phantoms, same)
    write_images(
        tmp_path / "Second", phantoms, {1: lambda hu: hu, 2: lambda hu: hu, 4: lambda hu: hu[::-1].clip(-160, 240)}
    )
    pairs = []
    for name in ("First", "Second"):
        text = f"name: {name}\ntitle: t\nprefix: {name[0]}\nlicence: none\ncitation: none\n{LAYOUT}"
        (tmp_path / f"{name}.yaml").write_text(text)
        pairs.append((str(tmp_path / f"{name}.yaml"), tmp_path / name))
    return pairs


def test_merge_finds_shared_images_and_puts_them_into_one_fold(overlapping):
    folder = merge(900, "Merged", overlapping)
    found = read_json(folder / "duplicates.json")
    assert [(pair["first"], pair["second"], pair["exact"]) for pair in found] == [
        ("F_2", "S_2", True),
        ("F_4", "S_4", False),
    ]
    assert read_json(folder / "dataset.json")["duplicate_groups"] == [["F_2", "S_2"], ["F_4", "S_4"]]
    for fold in read_json(folder / "splits_final.json"):
        for seed in (2, 4):
            assert (f"F_{seed}" in fold["val"]) == (f"S_{seed}" in fold["val"])


@pytest.mark.parametrize("is_reversed", [False, True])
def test_merge_drops_the_copies_of_the_source_named_later(overlapping, is_reversed):
    sources = overlapping[::-1] if is_reversed else overlapping
    folder = merge(900, "Merged", sources, MergeOptions(drop_duplicates=True))
    kept, dropped = ("S", "F") if is_reversed else ("F", "S")
    content = read_json(folder / "dataset.json")
    assert {f"{kept}_2", f"{kept}_4"} <= set(content["dataset"])
    assert len(content["dataset"]) == 7
    assert content["duplicate_groups"] == []
    assert read_json(folder / "manifest.json")["dropped"] == {
        f"{dropped}_{seed}": f"same image as {kept}_{seed}" for seed in (2, 4)
    }
    assert not list(folder.rglob(f"{dropped}_[24].*"))


def test_the_command_line_compares_a_merged_dataset_with_an_ordinary_one(nnunet, overlapping, phantoms, capsys):
    merge(900, "Merged", overlapping[:1])
    ordinary = nnunet / "nnUNet_raw/Dataset027_Ordinary"
    (ordinary / "imagesTr").mkdir(parents=True)
    for seed, hu in ((7, phantoms[7].image), (8, phantoms[8].image.clip(-100, 240)), (10, phantoms[10].image[:, ::-1])):
        nib.save(nib.Nifti1Image(hu.astype(np.float32), np.eye(4)), ordinary / f"imagesTr/case_{seed}_0000.nii.gz")
    labels = {"background": 0, "liver": 1}
    facts = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 3, "file_ending": ".nii.gz"}
    write_json(ordinary / "dataset.json", facts)
    assert main(["duplicates", "-d", "900", "-d", "Dataset027_Ordinary"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0] for line in lines[:2]] == ["F_10 = case_10", "F_8 = case_8"]
    assert lines[2] == "2 pairs among the images: 6 of 900 and 3 of Dataset027_Ordinary"
    assert main(["duplicates", "-d", "27", "-d", "900", "--json"]) == 0
    pairs = json.loads(capsys.readouterr().out)
    assert [(pair["first"], pair["second"]) for pair in pairs] == [("case_10", "F_10"), ("case_8", "F_8")]
    assert main(["duplicates", "-d", "27", "-np", "1"]) == 0
    assert capsys.readouterr().out.splitlines() == ["no image occurs twice", "0 pairs among the images: 3 of 27"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-d", "5"], "no dataset with id 5"),
        (["-d", "27", "-d", "27", "-d", "27"], "give -d once or twice, got 3 times"),
        (["-d", "27"], "Dataset027_X: image .*x_0000.nii.gz not found"),
    ],
)
def test_mistakes_of_the_command_line(nnunet, capsys, arguments, message):
    folder = nnunet / "nnUNet_raw/Dataset027_X"
    folder.mkdir()
    cases = {"x": {"images": ["/no/such/x_0000.nii.gz"], "label": "l.nii.gz"}}
    write_json(folder / "dataset.json", {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "dataset": cases})
    assert main(["duplicates", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert re.search(message, lines[0])
