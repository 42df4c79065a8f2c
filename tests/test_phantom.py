import nibabel as nib
import numpy as np
import pytest

from nnunet_pretrain.phantom import FIELDS_OF_VIEW, LESIONS, ORGANS, STRUCTURES, Appearance, generate_phantom

QUIET = Appearance(noise_hu=4.0, blur_mm=1.0)
TINY_ORGANS = {"adrenal_gland_left", "adrenal_gland_right", "celiac_trunk", "hepatic_vessel"}


@pytest.fixture(scope="module")
def cohort():
    return [generate_phantom(seed, spacing_mm=(4, 4, 4), appearance=QUIET) for seed in range(6)]


def number(name):
    return STRUCTURES.index(name) + 1


def voxels(case, name):
    return case.labels == number(name)


def center_mm(case, name):
    index = np.argwhere(voxels(case, name)).mean(axis=0)
    return case.affine[:3, :3] @ index + case.affine[:3, 3]


def in_ras(array, affine):
    image = nib.Nifti1Image(array, affine)
    return nib.as_closest_canonical(image)


def test_structures_are_organs_and_lesions_without_background():
    assert len(set(STRUCTURES)) == len(STRUCTURES) == len(ORGANS) + len(LESIONS)
    assert "background" not in STRUCTURES
    assert len(ORGANS) >= 20


def test_same_seed_gives_identical_arrays_whatever_was_drawn_before():
    first = generate_phantom(3)
    generate_phantom(4)
    again = generate_phantom(3)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.labels, again.labels)
    np.testing.assert_array_equal(first.affine, again.affine)


def test_other_seed_gives_another_patient():
    grid = {"shape": (50, 40, 50), "spacing_mm": (6, 6, 7)}
    one, other = generate_phantom(0, **grid), generate_phantom(1, **grid)
    assert np.mean(one.labels != other.labels) > 0.05
    assert np.mean(one.image != other.image) > 0.5


def test_arrays_have_the_promised_types_and_valid_values(cohort):
    for case in cohort:
        assert case.image.dtype == np.int16
        assert case.labels.dtype == np.uint8
        assert case.image.shape == case.labels.shape
        assert case.labels.max() <= len(STRUCTURES)
        assert case.image.min() >= -1024
        assert -1010 < np.percentile(case.image, 1) < -950


@pytest.mark.parametrize("orientation", ["LPS", "IPL", "ASR", "lai"])
def test_orientation_changes_storage_but_not_anatomy(orientation):
    ras = generate_phantom(5, spacing_mm=(6, 7, 8))
    other = generate_phantom(5, spacing_mm=(6, 7, 8), orientation=orientation)
    assert "".join(nib.aff2axcodes(other.affine)) == orientation.upper()
    for stored, expected in ((other.image, ras.image), (other.labels, ras.labels)):
        turned = in_ras(stored, other.affine)
        np.testing.assert_array_equal(np.asarray(turned.dataobj), expected)
        np.testing.assert_allclose(turned.affine, ras.affine, atol=1e-9)


def test_left_is_left_and_right_is_right(cohort):
    for case in cohort:
        x = {name: center_mm(case, name)[0] for name in ORGANS if voxels(case, name).any()}
        for organ in ("kidney", "lung", "femur"):
            assert x[f"{organ}_left"] < x[f"{organ}_right"] - 60
        assert x["spleen"] < x["stomach"] < x["liver"]
        assert x["aorta"] < x["postcava"]
        if "gall_bladder" in x:
            assert x["gall_bladder"] > x["pancreas"]


def test_organs_lie_at_their_height_and_depth(cohort):
    for case in cohort:
        at = {name: center_mm(case, name) for name in ORGANS if voxels(case, name).any()}
        assert at["lung_right"][2] > at["liver"][2] > at["kidney_right"][2] > at["bladder"][2] > at["prostate"][2]
        assert at["stomach"][1] > at["spleen"][1]
        assert at["bladder"][1] > at["prostate"][1] > at["rectum"][1]
        assert at["intestine"][1] > at["kidney_left"][1]


@pytest.mark.parametrize("organ", sorted(set(ORGANS) - TINY_ORGANS))
def test_organ_appears_in_most_patients(cohort, organ):
    assert sum(np.count_nonzero(voxels(case, organ)) >= 10 for case in cohort) >= 4


def test_tiny_organs_appear_at_3_mm():
    cases = [generate_phantom(seed, spacing_mm=(3, 3, 3), field_of_view="upper", appearance=QUIET) for seed in (0, 1)]
    for case in cases:
        for organ in TINY_ORGANS:
            assert np.count_nonzero(voxels(case, organ)) >= 10, organ


def test_lesions_occur_in_some_patients_only(cohort):
    counts = {name: sum(voxels(case, name).any() for case in cohort) for name in LESIONS}
    assert sum(count > 0 for count in counts.values()) >= 3
    assert all(count < len(cohort) for count in counts.values())


def test_volumes_are_those_of_an_adult(cohort):
    ml = {name: np.median([voxels(case, name).sum() * 0.064 for case in cohort]) for name in ORGANS}
    limits = {
        "liver": (900, 2200),
        "spleen": (60, 400),
        "kidney_left": (80, 280),
        "pancreas": (40, 140),
        "aorta": (40, 150),
        "gall_bladder": (5, 70),
    }
    for organ, (low, high) in limits.items():
        assert low < ml[organ] < high, (organ, ml[organ])


def test_median_densities_are_plausible_in_the_portal_phase(cohort):
    limits = {
        "liver": (85, 135),
        "spleen": (90, 150),
        "kidney_left": (140, 220),
        "aorta": (130, 190),
        "lung_left": (-900, -650),
        "bladder": (-10, 40),
    }
    for case in cohort:
        for organ, (low, high) in limits.items():
            assert low < np.median(case.image[voxels(case, organ)]) < high, organ


def test_phase_changes_vessels_and_appearance_never_changes_labels():
    grid = {"spacing_mm": (5, 5, 5), "field_of_view": "upper"}
    cases = {phase: generate_phantom(7, appearance=Appearance(phase=phase), **grid) for phase in ("native", "arterial")}
    aorta = {phase: np.median(case.image[voxels(case, "aorta")]) for phase, case in cases.items()}
    assert aorta["native"] < 70
    assert aorta["arterial"] > 200
    np.testing.assert_array_equal(cases["native"].labels, cases["arterial"].labels)


def test_noise_has_the_requested_strength():
    grid = {"spacing_mm": (5, 5, 5), "field_of_view": "upper"}
    calm, noisy = (generate_phantom(2, appearance=Appearance(noise_hu=n), **grid) for n in (0.0, 25.0))
    inside = calm.image > -500
    assert np.std((noisy.image.astype(float) - calm.image)[inside]) == pytest.approx(25, rel=0.1)


def test_explicit_shape_and_spacing_are_honoured_and_centred():
    case = generate_phantom(1, shape=(90, 70, 40), spacing_mm=(5.0, 4.0, 9.0))
    assert case.image.shape == (90, 70, 40)
    np.testing.assert_allclose(nib.affines.voxel_sizes(case.affine), (5.0, 4.0, 9.0))
    body = np.argwhere(case.image > -300)
    np.testing.assert_allclose(body.mean(axis=0)[:2], (44.5, 34.5), atol=6)


def test_the_same_patient_is_drawn_at_every_resolution():
    fine = generate_phantom(6, shape=(128, 96, 80), spacing_mm=(3, 3, 4))
    coarse = generate_phantom(6, shape=(64, 48, 40), spacing_mm=(6, 6, 8))
    fine_ml = np.bincount(fine.labels.ravel(), minlength=32)[1:] * 0.036
    coarse_ml = np.bincount(coarse.labels.ravel(), minlength=32)[1:] * 0.288
    large = fine_ml > 60
    assert large.sum() >= 8
    np.testing.assert_allclose(coarse_ml[large], fine_ml[large], rtol=0.2)


def test_field_of_view_decides_what_is_visible():
    seen = {}
    for field in FIELDS_OF_VIEW:
        case = generate_phantom(8, spacing_mm=(6, 6, 6), field_of_view=field)
        seen[field] = {name for name in ORGANS if voxels(case, name).any()}
    assert {"lung_left", "bladder"} <= seen["abdomen"]
    assert "lung_left" in seen["upper"]
    assert "bladder" not in seen["upper"]
    assert "bladder" in seen["pelvis"]
    assert "lung_left" not in seen["pelvis"]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"orientation": "RAR"}, "'RAR'"),
        ({"orientation": "RA"}, "'RA'"),
        ({"orientation": "XYZ"}, "'XYZ'"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "three positive numbers"),
        ({"spacing_mm": (1.0, 1.0)}, "three positive numbers"),
        ({"shape": (10, 10)}, "three sizes"),
        ({"shape": (10, 10, 0)}, "three sizes"),
        ({"field_of_view": "head"}, "abdomen, upper, pelvis, random"),
    ],
)
def test_impossible_arguments_are_named(arguments, found):
    with pytest.raises(ValueError, match="expected") as error:
        generate_phantom(0, **arguments)
    assert found in str(error.value)


def test_negative_seed_and_unknown_phase_are_refused():
    with pytest.raises(ValueError, match="seed is -1; expected 0 or more"):
        generate_phantom(-1)
    with pytest.raises(ValueError, match="phase is 'venous'; expected one of native, arterial, portal"):
        Appearance(phase="venous")
    with pytest.raises(ValueError, match="noise_hu"):
        Appearance(noise_hu=-1.0)
