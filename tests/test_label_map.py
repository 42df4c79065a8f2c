"""The label map, the NIfTI reader and writer, and holes, each against a slow and obvious way to do the same."""

import gzip
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes
from scipy.ndimage import label as label_components

from nnunet_pretrain.conversion.geometry import Alignment
from nnunet_pretrain.conversion.holes import enclosed_holes
from nnunet_pretrain.conversion.label_map import LabelMap
from nnunet_pretrain.conversion.volume import CHUNK_VOXELS, NiftiVolume, reoriented, write_nifti

NAMED = Path("some_label.nii.gz")
DTYPES = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", ">i2", ">u4", ">i8", ">f4", ">f8"]
SIZES = [1, 7, 8, 9, 63, 1000, 4099]
STORED = {1: 5, 2: 3, 3: 0, 4: 31, 5: 3, 90: 32}


def in_pieces(values, step=64):
    """Yields an array in pieces of a multiple of eight voxels, always in the same buffer, as a file does."""
    buffer = np.empty(step, values.dtype)
    for start in range(0, len(values), step):
        piece = buffer[: len(values[start : start + step])]
        piece[:] = values[start : start + step]
        yield piece


def speckled(rng, size, ids, share):
    """Returns runs and single voxels of some ids in a background of zeros."""
    values = np.repeat(rng.choice(ids, size), rng.integers(1, 12, size))[:size]
    values[rng.random(size) > share] = 0
    return values


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_remap_looks_every_id_up(dtype, size):
    rng = np.random.default_rng(size)
    for share in (0.0, 0.02, 0.6, 1.0):
        values = speckled(rng, size, list(STORED), share)
        labels = LabelMap(size)
        labels.remap(in_pieces(values.astype(dtype)), STORED, NAMED)
        assert labels.voxels.tolist() == [STORED.get(int(value), 0) for value in values]
        assert labels.present == {i: int((values == i).sum()) for i in set(values.tolist()) - {0}}
        assert labels.counts() == dict(zip(*np.unique(labels.voxels, return_counts=True), strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [6, 89, 91, 127])
def test_remap_refuses_unknown_ids_of_every_type(dtype, value):
    values = np.zeros(100, dtype)
    values[[3, 97]] = 1, value
    with pytest.raises(ValueError, match=rf"some_label.nii.gz holds label ids \[{value}\], expected only \[0, 1, 2"):
        LabelMap(100).remap(in_pieces(values), STORED, NAMED)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(-1, "i1"), (-5, "f4"), (2**63 - 1, "i8"), (2**64 - 1, "u8"), (1e30, "f8"), (-(2**63), "i8"), (65535, "u2")],
)
def test_remap_refuses_ids_out_of_any_range(value, dtype):
    values = np.zeros(100, dtype)
    values[50:60] = value
    with pytest.raises(ValueError, match="holds label ids"):
        LabelMap(100).remap(in_pieces(values), STORED, NAMED)


@pytest.mark.parametrize("value", [0.5, 1.01, np.nan, np.inf, -np.inf])
def test_fractions_are_refused_and_rounding_errors_are_not(value):
    values = np.zeros(100, np.float32)
    values[:40] = 2.0004
    labels = LabelMap(100)
    labels.remap(in_pieces(values), STORED, NAMED)
    assert labels.counts() == {0: 60, 3: 40}
    values[:99], values[99] = 0, value
    for fill in (labels.remap, lambda chunks, _, path: labels.paint(chunks, "mask", 1, path)):
        with pytest.raises(ValueError, match=r"some_label.nii.gz holds fractional or non-finite"):
            fill(in_pieces(values), STORED, NAMED)


def test_unknown_ids_are_listed_but_not_all():
    with pytest.raises(ValueError, match=r"\[100, 101, 102, 103, 104, 105, 106, 107\] and more"):
        LabelMap(50).remap([np.arange(100, 150, dtype=np.int16)], STORED, NAMED)


def painted(masks, ids, ignore_id):
    """Returns what masks come to, voxel by voxel, and the number of contested voxels."""
    sizes = {i: sum(int(mask.sum()) for mask, j in zip(masks, ids, strict=True) if i == j) for i in ids}
    result, contested = [], 0
    for claims in zip(*masks, strict=True):
        claiming = {i for i, claim in zip(ids, claims, strict=True) if claim}
        contested += len(claiming) > 1
        if len(claiming) > 1 and ignore_id is not None:
            result.append(ignore_id)
        else:
            result.append(min(claiming, key=lambda i: (sizes[i], -i)) if claiming else 0)
    return result, contested


@pytest.mark.parametrize("ignore_id", [None, 32])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(4))
def test_masks_overlap_as_a_loop_over_voxels_says(size, seed, ignore_id):
    rng = np.random.default_rng([size, seed])
    ids = [int(i) for i in rng.choice([3, 4, 7, 7, 20, 31], 6)]
    masks = [speckled(rng, size, [1], share) > 0 for share in rng.choice([0.0, 0.05, 0.3, 0.3, 0.9], 6)]
    expected, contested = painted(masks, ids, ignore_id)
    labels = LabelMap(size)
    for position, (mask, stored_id) in enumerate(zip(masks, ids, strict=True)):
        values = (mask * rng.choice([1, 255])).astype(rng.choice(DTYPES[1:]))
        labels.paint(in_pieces(values), f"mask {position}", stored_id, NAMED)
    labels.settle_overlaps(ignore_id)
    assert labels.voxels.tolist() == expected
    assert labels.overlapping == contested
    assert labels.present == {f"mask {i}": int(mask.sum()) for i, mask in enumerate(masks) if mask.any()}
    assert labels.counts() == dict(zip(*np.unique(labels.voxels, return_counts=True), strict=True))


def test_of_equally_large_masks_the_later_structure_wins():
    for order in ((5, 19, 8), (19, 8, 5), (8, 5, 19)):
        labels = LabelMap(24)
        for stored_id in order:
            labels.paint([np.ones(24, np.uint8)], str(stored_id), stored_id, NAMED)
        labels.settle_overlaps(None)
        assert labels.counts() == {19: 24}


def test_two_masks_of_one_structure_do_not_contest():
    labels = LabelMap(9)
    for name in ("upper lobe", "lower lobe"):
        labels.paint([np.ones(9, np.uint8)], name, 21, NAMED)
    labels.settle_overlaps(32)
    assert (labels.counts(), labels.overlapping) == ({21: 9}, 0)


@pytest.mark.parametrize("values", [(0, 2), (0, 1, 254), (-1, 0), (0, 1, 255, 256)])
def test_a_mask_with_other_values_is_refused(values):
    with pytest.raises(ValueError, match=r"some_label.nii.gz holds values .* expected a binary mask"):
        LabelMap(40).paint([np.resize(np.array(values, np.int16), 40)], "mask", 1, NAMED)


def some_affines():
    rng = np.random.default_rng(5)
    for codes in ("RAS", "LPS", "IPL", "ASR"):
        yield (
            codes,
            nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(codes), (5, 6, 7)) @ np.diag([1, 2, 3, 1.0]),
        )
    oblique = np.eye(4)
    oblique[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0] * (0.7, 0.8, 2.5)
    oblique[:3, 3] = -250.5, 120.25, 1033
    yield "oblique", oblique
    sheared = np.diag([0.7, 0.7, 5.0, 1])
    sheared[1, 2] = 1.6  # a tilted gantry
    yield "sheared", sheared


AFFINES = dict(some_affines())


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_what_is_written_is_read_by_nibabel(tmp_path, name, dtype):
    array = np.random.default_rng(1).integers(-5 if dtype == np.int16 else 0, 100, (9, 8, 7)).astype(dtype)
    digest = write_nifti(tmp_path / "a.nii.gz", array, AFFINES[name])
    image = nib.load(tmp_path / "a.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj), array)
    assert image.get_data_dtype() == dtype
    assert np.allclose(image.affine, AFFINES[name], rtol=0, atol=1e-4)
    assert np.allclose(image.header.get_zooms(), np.linalg.norm(AFFINES[name][:3, :3], axis=0))
    assert image.header.get_xyzt_units()[0] == "mm"
    if name != "sheared":  # a quaternion cannot shear
        assert np.allclose(image.get_qform(), AFFINES[name], atol=1e-3)
    assert digest == write_nifti(tmp_path / "b.nii.gz", np.asfortranarray(array), AFFINES[name])
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    volume = NiftiVolume(tmp_path / "a.nii.gz")
    assert np.array_equal(volume.read(), array)
    assert volume.sha256 == {tmp_path / "a.nii.gz": digest}
    assert np.allclose(volume.grid.affine, image.affine)


READ = list(
    product((nib.Nifti1Image, nib.Nifti2Image), "<>", (None, (0.5, -3.0)), (".nii", ".nii.gz"), ("u1", "i2", "f4"))
)


@pytest.mark.parametrize(("kind", "order", "scaling", "ending", "dtype"), READ)
def test_every_nifti_is_read_as_nibabel_reads_it(tmp_path, kind, order, scaling, ending, dtype):
    array = np.random.default_rng(2).integers(0, 100, (67, 65, 61)).astype(order + dtype)
    assert array.size > CHUNK_VOXELS
    image = kind(array, AFFINES["oblique"], kind.header_class(endianness=order))
    image.header.set_data_dtype(dtype)
    content = bytearray(image.to_bytes())
    if scaling:
        block = np.frombuffer(content, image.header.template_dtype.newbyteorder(order), 1).copy()
        block["scl_slope"], block["scl_inter"] = scaling
        content[: block.nbytes] = block.tobytes()
    path = tmp_path / f"a{ending}"
    path.write_bytes(gzip.compress(content, 1) if ending.endswith("gz") else content)
    expected = np.asarray(nib.load(path).dataobj)
    assert np.array_equal(NiftiVolume(path).read(), expected)
    chunks = np.concatenate([chunk.copy() for chunk in NiftiVolume(path).chunks()])
    assert np.array_equal(chunks, expected.reshape(-1, order="F"))
    assert np.array_equal(NiftiVolume(path).grid.affine, nib.load(path).affine)


@pytest.mark.parametrize(("ending", "is_zipped"), [(".nii", True), (".nii.gz", False)])
def test_an_image_whose_name_lies_about_compression_is_refused_for_nnunet(tmp_path, ending, is_zipped):
    content = nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), AFFINES["oblique"]).to_bytes()
    path = tmp_path / f"image{ending}"
    path.write_bytes(gzip.compress(content) if is_zipped else content)
    with pytest.raises(ValueError, match=rf"image{ending} is .*compressed, which its name denies; nnU-Net cannot"):
        NiftiVolume(path).check_for_nnunet()
    path.write_bytes(content if is_zipped else gzip.compress(content))
    NiftiVolume(path).check_for_nnunet()


@pytest.mark.parametrize("stored", AFFINES)
@pytest.mark.parametrize("wanted", ["RAS", "LPS", "IPL"])
def test_labels_are_turned_onto_their_image(tmp_path, stored, wanted):
    array = np.random.default_rng(3).integers(0, 100, (5, 6, 7)).astype(np.uint8)
    label = nib.Nifti1Image(array, AFFINES[stored])
    nib.save(label, tmp_path / "label.nii.gz")
    image = label.as_reoriented(nib.orientations.ornt_transform(
        nib.io_orientation(label.affine), nib.orientations.axcodes2ornt(wanted)
    ))  # fmt: skip
    nib.save(image, tmp_path / "image.nii.gz")
    alignment = Alignment(NiftiVolume(tmp_path / "image.nii.gz").grid)
    found = np.concatenate([chunk.copy() for chunk in alignment.chunks(NiftiVolume(tmp_path / "label.nii.gz"))])
    assert np.array_equal(found.reshape(image.shape, order="F"), np.asarray(image.dataobj))
    turned, grid = reoriented(array, NiftiVolume(tmp_path / "label.nii.gz").grid, alignment.image)
    assert np.array_equal(turned, np.asarray(image.dataobj))
    assert np.allclose(grid.affine, image.affine, atol=1e-4)


def scipys_holes(labels, organ_id, part_ids):
    """Background that scipy would fill if the organ with its parts were alone, and that no other organ lies in."""
    wall = np.isin(labels, [organ_id, *part_ids])
    holes = binary_fill_holes(wall) & ~wall
    number, _ = label_components(holes)
    foreign = np.unique(number[holes & (labels != 0)])
    return holes & ~np.isin(number, foreign)


@pytest.mark.parametrize("seed", range(30))
def test_holes_are_those_scipy_fills(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(3, 24, 3))
    labels = np.zeros(shape, np.uint8)
    distance = np.linalg.norm(
        (np.indices(shape).T - np.array(shape) / 2).T / (np.array(shape) / 2)[:, None, None, None], axis=0
    )
    labels[distance < 0.95] = 5
    labels[rng.random(shape) < rng.choice([0.02, 0.1, 0.3, 0.5])] = 0
    labels[(rng.random(shape) < 0.03) & (labels == 5)] = 6
    found = np.zeros(shape, bool)
    found[enclosed_holes(labels, 5, [6])] = True
    assert np.array_equal(found, scipys_holes(labels, 5, [6]))


def test_there_are_no_holes_without_the_organ_or_in_a_cup():
    labels = np.zeros((6, 7, 8), np.uint8)
    assert [len(axis) for axis in enclosed_holes(labels, 5, [])] == [0, 0, 0]
    labels[1:5, 1:6, 1:7] = 5
    labels[2:4, 2:5, 2:7] = 0
    assert len(enclosed_holes(labels, 5, [])[0]) == 0
    labels[:, :, 6] = 5
    assert len(enclosed_holes(labels, 5, [])[0]) == 2 * 3 * 4
