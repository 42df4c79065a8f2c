"""Left and right: unsplit kidneys are split only where that is safe, and what cannot be anatomy is quarantined."""

import nibabel as nib
import numpy as np
import pytest

from nnunet_pretrain.conversion import MergeOptions, merge
from nnunet_pretrain.files import read_json
from nnunet_pretrain.labels import DEFAULT_SPACE

SHAPE, SPACING = (72, 56, 50), 5.0
KIDNEY, TUMOR, CYST = 1, 2, 3
LEFT, RIGHT = (DEFAULT_SPACE.id_of(f"kidney_{side}") for side in ("left", "right"))
UNSPLIT = {"kidney_left", "kidney_right"}
HEAD = (
    "title: t\nprefix: S\nlicence: none\ncitation: none\n"
    "layouts: [{images: 'ct/{case}.nii.gz', labels: 'labels/{case}.nii.gz'}]\n"
)
KIDNEYS = f"{HEAD}name: Kidneys\nlabels: {{1: kidney, 2: kidney_tumor, 3: kidney_cyst}}\n"
TRUNK = f"{HEAD}name: Trunk\nlabels: {{1: liver, 2: spleen, 3: kidney_left, 4: kidney_right}}\n"


class Patient:
    """A body of water in air, into which organs are drawn; places are in mm, x to the right, the body's middle is 0."""

    def __init__(self, middle_mm=0.0):
        self.affine = np.diag([SPACING, SPACING, SPACING, 1.0])
        self.affine[:3, 3] = [-SPACING * (n - 1) / 2 for n in SHAPE]
        self.affine[0, 3] -= middle_mm
        self.mm = np.stack(
            [axis * SPACING + start for axis, start in zip(np.indices(SHAPE), self.affine[:3, 3], strict=True)]
        )
        self.hu = np.full(SHAPE, -1000, np.int16)
        self.hu[(self.mm[0] / 150) ** 2 + (self.mm[1] / 110) ** 2 < 1] = 20
        self.labels = np.zeros(SHAPE, np.uint8)

    def ellipsoid(self, label, centre, radii=(25, 25, 45), hu=120):
        inside = sum(((self.mm[axis] - centre[axis]) / radii[axis]) ** 2 for axis in range(3)) < 1
        self.labels[inside], self.hu[inside] = label, hu
        return self

    def box(self, label, low, high):
        inside = np.all([(self.mm[axis] >= low[axis]) & (self.mm[axis] <= high[axis]) for axis in range(3)], axis=0)
        self.labels[inside], self.hu[inside] = label, 120
        return self

    def save(self, folder, case, codes="RAS"):
        for array, kind in ((self.hu, "ct"), (self.labels, "labels")):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            image = nib.Nifti1Image(array, self.affine).as_reoriented(nib.orientations.axcodes2ornt(codes))
            nib.save(image, folder / kind / f"{case}.nii.gz")


def two_kidneys(middle_mm=0.0):
    return Patient(middle_mm).ellipsoid(KIDNEY, (-70, -20, 0)).ellipsoid(KIDNEY, (70, -20, 0))


def merged(tmp_path, source, patients, split_paired=True, codes="RAS", **rules):
    """Merges patients, and returns folder, records and quarantine."""
    yaml = tmp_path / "source.yaml"
    yaml.write_text(source + "".join(f"{key}: {value}\n" for key, value in rules.items()))
    for case, patient in patients.items():
        patient.save(tmp_path / "data", case, codes)
    options = MergeOptions(split_paired=split_paired, overwrite=True)
    folder = merge(900, "Merged", [(str(yaml), tmp_path / "data")], options)
    manifest = read_json(folder / "manifest.json")
    return folder, manifest["cases"], manifest["quarantined"]


def stored(folder, case):
    """Returns a case's stored ids in RAS order."""
    return np.asarray(nib.as_closest_canonical(nib.load(folder / f"labelsTr/{case}.nii.gz")).dataobj)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "IPL"])
@pytest.mark.parametrize("middle_mm", [0.0, 25.0])
def test_two_kidneys_are_split_in_every_storage_order(nnunet, tmp_path, codes, middle_mm):
    patient = (
        two_kidneys(middle_mm).ellipsoid(TUMOR, (85, -20, 20), (12, 12, 12)).ellipsoid(CYST, (-85, -20, 0), (9, 9, 9))
    )
    folder, records, _ = merged(tmp_path, KIDNEYS, {"a": patient}, codes=codes)
    labels, is_right = stored(folder, "S_a"), patient.mm[0] > 0
    assert np.array_equal(labels == LEFT, (patient.labels == KIDNEY) & ~is_right)
    assert np.array_equal(labels == RIGHT, (patient.labels == KIDNEY) & is_right)
    assert np.array_equal(labels == DEFAULT_SPACE.id_of("kidney_tumor"), patient.labels == TUMOR)
    assert np.array_equal(labels == DEFAULT_SPACE.id_of("kidney_cyst"), patient.labels == CYST)
    record = records["S_a"]
    assert record["scheme"]["name"] == "Kidneys split kidney"
    assert record["scheme"]["sets"][str(LEFT)] == ["kidney_left"]
    assert record["scheme"]["sets"][str(RIGHT)] == ["kidney_right"]
    assert UNSPLIT.isdisjoint(record["scheme"]["sets"]["0"])
    assert record["voxels"][str(RIGHT)] == np.count_nonzero((patient.labels == KIDNEY) & is_right)
    assert [d for d in record["decisions"] if d.startswith("kidney split: left 1")]


def test_without_being_asked_nothing_is_split(nnunet, tmp_path):
    folder, records, _ = merged(tmp_path, KIDNEYS, {"a": two_kidneys()}, split_paired=False)
    assert set(np.unique(stored(folder, "S_a"))) == {0, LEFT}
    assert set(records["S_a"]["scheme"]["sets"][str(LEFT)]) == UNSPLIT
    assert records["S_a"]["decisions"] == []


def test_a_tumour_that_cuts_a_kidney_in_two_joins_its_halves(nnunet, tmp_path):
    patient = two_kidneys().box(TUMOR, (40, -50, -12), (105, 10, 12))
    folder, records, _ = merged(tmp_path, KIDNEYS, {"a": patient})
    labels = stored(folder, "S_a")
    assert np.array_equal(labels == RIGHT, (patient.labels == KIDNEY) & (patient.mm[0] > 0))
    assert np.array_equal(labels == LEFT, (patient.labels == KIDNEY) & (patient.mm[0] < 0))
    assert records["S_a"]["decisions"][0].startswith("kidney split")


def test_crumbs_go_to_the_nearer_kidney(nnunet, tmp_path):
    patient = two_kidneys().box(KIDNEY, (-20, 50, 0), (-10, 55, 0)).box(KIDNEY, (20, 50, 0), (25, 50, 0))
    folder, _, _ = merged(tmp_path, KIDNEYS, {"a": patient})
    labels = stored(folder, "S_a")
    assert np.array_equal(labels == RIGHT, (patient.labels == KIDNEY) & (patient.mm[0] > 0))
    assert np.array_equal(labels == LEFT, (patient.labels == KIDNEY) & (patient.mm[0] < 0))


UNSAFE = {
    "one kidney": (Patient().ellipsoid(KIDNEY, (70, -20, 0)), "1 components of 20 ml or more, expected 2"),
    "horseshoe": (two_kidneys().box(KIDNEY, (-70, -25, -40), (70, -15, -30)), "1 components of 20 ml or more"),
    "bridged by a tumour": (two_kidneys().box(TUMOR, (-70, -25, -10), (70, -15, 10)), "1 components of 20 ml"),
    "both on one side": (
        Patient().ellipsoid(KIDNEY, (40, 0, 0), (20, 20, 45)).ellipsoid(KIDNEY, (110, 0, 0), (20, 20, 45)),
        "100% of a component lies beyond the body's midline",
    ),
    "one far across": (
        Patient().ellipsoid(KIDNEY, (-10, 0, 0), (25, 25, 45)).ellipsoid(KIDNEY, (80, 0, 0)),
        "of a component lies beyond the body's midline",
    ),
    "three": (two_kidneys().ellipsoid(KIDNEY, (0, 60, -80), (25, 25, 30)), "3 components of 20 ml or more, expected 2"),
    "too close": (
        Patient().ellipsoid(KIDNEY, (-25, 0, 0), (15, 25, 45)).ellipsoid(KIDNEY, (25, 0, 0), (15, 25, 45)),
        "the components lie 50 mm apart, expected 60",
    ),
    "too large": (two_kidneys().ellipsoid(KIDNEY, (75, 0, 0), (70, 80, 110)), "ml, expected at most 1500"),
    "in pieces": (
        two_kidneys().ellipsoid(KIDNEY, (70, -20, 75), (15, 15, 15)).ellipsoid(KIDNEY, (70, -20, -75), (15, 15, 15)),
        "of it lies in smaller pieces",
    ),
    "no kidney": (Patient().ellipsoid(CYST, (70, -20, 0)), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSAFE)
def test_what_is_not_safe_to_split_keeps_its_set_and_says_why(nnunet, tmp_path, name):
    patient, reason = UNSAFE[name]
    folder, records, _ = merged(tmp_path, KIDNEYS, {"a": patient})
    assert set(records["S_a"]["scheme"]["sets"][str(LEFT)]) == UNSPLIT
    assert str(RIGHT) not in records["S_a"]["scheme"]["sets"]
    assert np.array_equal(stored(folder, "S_a") == LEFT, patient.labels == KIDNEY)
    decisions = records["S_a"]["decisions"]
    assert [d.startswith("kidney not split: ") and reason in d for d in decisions] == ([True] if reason else [])


def trunk(mirrored=False):
    side = -1 if mirrored else 1
    patient = (
        Patient().ellipsoid(1, (side * 70, 20, 30), (60, 60, 50), 100).ellipsoid(2, (side * -100, 0, 40), (25, 30, 30))
    )
    return patient.ellipsoid(3, (side * -70, -20, -60)).ellipsoid(4, (side * 70, -20, -70))


def test_a_mirrored_header_is_quarantined_unless_the_source_accepts_the_case(nnunet, tmp_path):
    patients = {"good": trunk(), "mirrored": trunk(mirrored=True)}
    _, records, quarantined = merged(tmp_path, TRUNK, patients)
    assert list(records) == ["S_good"]
    assert quarantined["S_mirrored"].startswith("left and right are swapped: spleen lies ")
    assert records["S_good"]["warnings"] == ["no bone: the highest voxel is 120 HU"]
    _, records, quarantined = merged(tmp_path, TRUNK, patients, accept_cases="[mirrored]")
    assert (set(records), quarantined) == ({"S_good", "S_mirrored"}, {})
    assert "accepted although left and right are swapped" in records["S_mirrored"]["warnings"][-1]


@pytest.mark.parametrize(("first", "second"), [(1, 2), (3, 4)])
def test_exchanged_ids_are_quarantined(nnunet, tmp_path, first, second):
    patient = trunk()
    is_first, is_second = patient.labels == first, patient.labels == second
    patient.labels[is_first], patient.labels[is_second] = second, first
    _, _, quarantined = merged(tmp_path, TRUNK, {"good": trunk(), "exchanged": patient})
    assert quarantined["S_exchanged"].startswith("left and right are swapped")


def test_labels_in_air_are_quarantined(nnunet, tmp_path):
    shifted = trunk()
    shifted.labels = np.roll(shifted.labels, SHAPE[1] // 2, axis=1)
    _, records, quarantined = merged(tmp_path, TRUNK, {"good": trunk(), "shifted": shifted})
    assert list(records) == ["S_good"]
    assert quarantined["S_shifted"].startswith("the labels do not lie on the image: median HU liver -1000")
    _, records, _ = merged(tmp_path, TRUNK, {}, accept_cases="[S_shifted]")
    assert records["S_shifted"]["warnings"][-1].startswith("accepted although the labels do not lie on the image")


def test_one_unusual_organ_is_a_warning(nnunet, tmp_path):
    _, records, quarantined = merged(tmp_path, TRUNK, {"a": trunk().ellipsoid(2, (-100, 0, 40), (25, 30, 30), -20)})
    assert quarantined == {}
    assert "unusual HU: median -20 inside spleen, usual are 0 to 250" in records["S_a"]["warnings"]


@pytest.mark.parametrize("is_faulty", [True, False])
def test_unit_spacing_is_quarantined_only_where_the_source_says_so(nnunet, tmp_path, is_faulty):
    patient = trunk()
    patient.affine = np.diag([1.0, 1.0, 1.0, 1.0])
    patients = {"good": trunk(), "lost": patient}
    _, records, quarantined = merged(tmp_path, TRUNK, patients, unit_spacing_is_faulty=is_faulty)
    assert list(records) == (["S_good"] if is_faulty else ["S_good", "S_lost"])
    assert list(quarantined) == (["S_lost"] if is_faulty else [])
    assert all("the spacing is exactly (1, 1, 1) mm" in reason for reason in quarantined.values())


def test_an_unusual_spacing_is_a_warning(nnunet, tmp_path):
    patient = trunk()
    patient.affine[2, 2] = 12
    _, records, _ = merged(tmp_path, TRUNK, {"a": patient})
    assert records["S_a"]["warnings"][0] == "unusual spacing 5 x 5 x 12 mm, usual are 0.3 to 8 mm"
