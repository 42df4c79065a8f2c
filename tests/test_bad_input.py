"""Damaged and unusual input: every file is either converted exactly or quarantined with a reason, and nothing else."""

import gzip
import os
import signal
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from nnunet_runs import nnunet_folders, variables_set
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient

from nnunet_pretrain.cli import main
from nnunet_pretrain.conversion import MergeOptions, merge
from nnunet_pretrain.files import read_json
from nnunet_pretrain.labels import DEFAULT_SPACE

SHAPE = (12, 11, 10)
AFFINE = np.diag([1.5, 1.5, 3.0, 1.0])
AFFINE[:3, 3] = -20, -30, 40
NAMES = ("aorta", "stomach", "colon")
STORED = np.array([0, *(DEFAULT_SPACE.id_of(name) for name in NAMES)], np.uint8)
HEADER, HEALTHY, LIMIT_S = 352, 4, 120

HEAD = "title: t\nlicence: none\ncitation: none\n"
SOURCES = {
    "Labels": f"{HEAD}name: Labels\nprefix: L\nlabels: {{1: aorta, 2: stomach, 3: colon}}\n"
    "layouts: [{images: '{case}/ct.nii.gz', labels: '{case}/seg.nii.gz'}]\n",
    "Masks": f"{HEAD}name: Masks\nprefix: M\nlabels: {{aorta: aorta, stomach: stomach, colon: colon}}\n"
    "layouts: [{images: '{case}/ct.nii.gz', masks: '{case}/m/{mask}.nii.gz'}]\n",
}
FILES = {"Labels": ("ct.nii.gz", "seg.nii.gz"), "Masks": ("ct.nii.gz", "m/stomach.nii.gz")}

Write = Callable[[Path], None]


def an_image():
    values = np.random.default_rng(1).integers(-1000, 1000, SHAPE).astype(np.int16)
    values.flat[:4] = -1024, 1200, 0, -1
    return values


def a_label():
    values = np.zeros(SHAPE, np.uint8)
    values[2:9, 2:9, 2:5], values[3:6, 3:6, 6:8], values[0, :, 9] = 1, 2, 3
    return values


def array_for(file):
    """Returns what a healthy case holds in a file."""
    if file == "ct.nii.gz":
        return an_image()
    if file == "seg.nii.gz":
        return a_label()
    return (a_label() == NAMES.index(Path(file).name.removesuffix(".nii.gz")) + 1).astype(np.uint8)


def nifti(array, affine=AFFINE, kind=nib.Nifti1Image, order="<", **fields):
    """Returns an uncompressed NIfTI; `fields` are written into its header as they are."""
    array = np.asarray(array)
    header = kind.header_class(endianness=order)
    if array.dtype.kind != "V":
        array = array.astype(array.dtype.newbyteorder(order))
    header.set_data_dtype(array.dtype)
    content = bytearray(kind(array, affine, header, dtype=array.dtype).to_bytes())
    block = np.frombuffer(content, header.template_dtype.newbyteorder(order), 1).copy()
    for name, value in fields.items():
        block[name] = value
    content[: block.nbytes] = block.tobytes()
    return bytes(content)


def zipped(content):
    return gzip.compress(content, 6, mtime=0)


def flipped(content, place, rng):
    damaged = bytearray(content)
    damaged[place] ^= int(rng.integers(1, 256))
    return bytes(damaged)


def write_case(folder, source):
    """Writes a healthy case."""
    for file in ("ct.nii.gz", "seg.nii.gz") if source == "Labels" else ("ct.nii.gz", *(f"m/{n}.nii.gz" for n in NAMES)):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(zipped(nifti(array_for(file))))


@dataclass(frozen=True)
class Mutant:
    """A case of which one file is not as it should be.

    Attributes:
        name: Its folder.
        source: Source it belongs to.
        file: The file that is changed.
        write: Writes the changed file.
        fate: `converts`, `quarantined`, or `either` where only a reader can tell.
    """

    name: str
    source: str
    file: str
    write: Write
    fate: str


def written(content) -> Write:
    return lambda path: Path(path).write_bytes(content)


def damaged_bytes(source, file):
    """Yields files that lost an end or had bytes changed, in the gzip stream and in the header below it."""
    rng = np.random.default_rng([len(source), len(file)])
    whole = zipped(nifti(array_for(file)))
    for end in np.linspace(0, len(whole) - 1, 25).astype(int):
        yield f"cut at {end}", written(whole[:end]), "quarantined"
    for place in np.linspace(0, len(whole) - 1, 25).astype(int):
        yield f"stream byte {place}", written(flipped(whole, place, rng)), "either"
    plain = nifti(array_for(file))
    for place in sorted({*range(0, HEADER, 9), 39, 40, 41, 43, 70, 71, 73, 79, 83, 108, 109, 111, 115, 119, 253, 255}):
        yield f"header byte {place}", written(zipped(flipped(plain, place, rng))), "either"


def odd_headers(file):
    """Yields headers that no reader should take, and some that every reader should."""
    array = array_for(file)
    nan, far = AFFINE.copy(), AFFINE.copy()
    nan[1, 1], far[0, 3] = np.nan, np.inf
    for name, affine in (("nan", nan), ("inf", far)):
        rows = {f"srow_{axis}": affine[row].astype("<f4") for row, axis in enumerate("xyz")}
        yield f"{name} affine", nifti(array, **rows), "quarantined"
    zero = {f"srow_{axis}": 0 for axis in "xyz"}
    yield "zero affine", nifti(array, **zero, sform_code=1), "quarantined"
    nnunet_reads_it = "quarantined" if file == "ct.nii.gz" else "converts"
    yield "zero spacing", nifti(array, pixdim=[1, 0, 1.5, 3, 0, 0, 0, 0]), nnunet_reads_it
    yield "other spacing than the affine", nifti(array, pixdim=[1, 1, 1, 1, 0, 0, 0, 0]), nnunet_reads_it
    yield "rounded spacing", nifti(array, pixdim=[1, 1.49, 1.501, 3.0001, 0, 0, 0, 0]), "converts"
    yield "zero spacing and no sform", nifti(array, pixdim=[1, 0, 0, 0, 0, 0, 0, 0], sform_code=0), "quarantined"
    yield "nan spacing and no sform", nifti(array, pixdim=[1, np.nan, 1, 1, 0, 0, 0, 0], sform_code=0), "quarantined"
    yield "negative spacing", nifti(array, pixdim=[1, -1.5, -1.5, -3, 0, 0, 0, 0], sform_code=0), "either"
    yield "neither sform nor qform", nifti(array, sform_code=0, qform_code=0), "quarantined"
    yield "bad quaternion", nifti(array, sform_code=0, qform_code=1, quatern_b=3, quatern_c=3), "quarantined"
    yield "4D", nifti(np.stack([array] * 2, 3)), "quarantined"
    yield "4D of one volume", nifti(array[..., None]), "either"
    yield "5D", nifti(array[..., None, None]), "either"
    yield "2D", nifti(array[:, :, 0]), "quarantined"
    yield "RGB", nifti(np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])), "quarantined"
    yield "complex", nifti(array.astype(np.complex64)), "quarantined"
    for dims in ([3, 0, 11, 10], [3, -12, 11, 10], [3, 32767, 32767, 32767], [3, 12, 11, 32767], [3, 12, 11, 11]):
        yield f"dims {dims}", nifti(array, dim=[*dims, 1, 1, 1, 1]), "quarantined"
    for count in (-1, 0, 1, 8):
        yield f"{count} dims", nifti(array, dim=[count, *SHAPE, 1, 1, 1, 1]), "quarantined"
    yield "freesurfer dims", nifti(array, dim=[3, -1, 1, 1, 1, 1, 1, 1], glmin=0), "quarantined"
    yield "fewer slices said than there are", nifti(array, dim=[3, 12, 11, 9, 1, 1, 1, 1]), "quarantined"
    for offset in (0, 100, 1e9, -5, np.nan, np.inf, 353):
        yield f"voxels from {offset}", nifti(array, vox_offset=offset), "quarantined"
    yield "two files magic", nifti(array, magic=b"ni1"), "quarantined"
    yield "no magic", nifti(array, magic=b""), "quarantined"
    yield "unknown dtype", nifti(array, datatype=999), "quarantined"
    yield "bits do not fit dtype", nifti(array, bitpix=64), "either"
    yield "infinite intercept", nifti(array, scl_slope=1, scl_inter=np.inf), "quarantined"
    yield "slope not a number", nifti(array, scl_slope=np.nan, scl_inter=0), "converts"
    yield "slope zero", nifti(array, scl_slope=0, scl_inter=0), "converts"
    yield "slope one", nifti(array, scl_slope=1, scl_inter=0), "converts"
    yield "NIfTI-2", nifti(array, kind=nib.Nifti2Image), "converts"
    yield "NIfTI-2 big-endian", nifti(array, kind=nib.Nifti2Image, order=">"), "converts"
    for dtype in ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]:
        small = np.clip(array, -128, 127) if dtype == "i1" else np.clip(array, 0, 255) if dtype[0] == "u" else array
        yield f"dtype {dtype}", nifti(small.astype(dtype)), "converts"
        if dtype[1] != "1":
            yield f"dtype {dtype} big-endian", nifti(small.astype(dtype), order=">"), "converts"
    yield "dtype f16", nifti(array, datatype=1536), "quarantined"
    yield "slope 2", nifti((array * 2).astype(np.int16), scl_slope=0.5, scl_inter=0), "converts"
    yield "intercept", nifti((array.astype(int) + 2000).astype(np.uint16), scl_slope=1, scl_inter=-2000), "converts"
    yield "NaN", nifti(np.where(array == array.max(), np.nan, array).astype(np.float32)), "quarantined"
    yield "inf", nifti(np.where(array == array.max(), np.inf, array).astype(np.float64)), "quarantined"
    mirrored, shifted, sheared = AFFINE.copy(), AFFINE.copy(), AFFINE.copy()
    mirrored[0, 0], shifted[2, 3], sheared[0, 1] = -1.5, 43, 0.4
    yield "mirrored header", nifti(array, mirrored), "quarantined"
    yield "shifted header", nifti(array, shifted), "quarantined"
    yield "sheared header", nifti(array, sheared), "quarantined"
    yield "other shape", nifti(array[:-1]), "quarantined"
    yield "axes exchanged", nifti(array.transpose(1, 0, 2)), "quarantined"


def odd_containers(file):
    """Yields files that are no NIfTI, or wrapped in another way."""
    plain = nifti(array_for(file))
    half = len(plain) // 2
    yield "not zipped", plain, "quarantined" if file == "ct.nii.gz" else "converts"
    yield "not zipped, cut", plain[:-1], "quarantined"
    yield "zipped twice", zipped(zipped(plain)), "quarantined"
    yield "two gzip members", zipped(plain[:half]) + zipped(plain[half:]), "converts"
    yield "an empty gzip member at the end", zipped(plain) + zipped(b""), "converts"
    yield "zeros behind gzip", zipped(plain) + b"\0" * 700, "converts"
    yield "bytes behind gzip", zipped(plain) + b"garbage behind", "either"
    yield "bytes behind the voxels", zipped(plain + b"more"), "converts"
    yield "stored without compression", gzip.compress(plain, 0), "converts"
    yield "text", b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\n", "quarantined"
    yield "zipped text", zipped(b"nothing to see here"), "quarantined"
    yield "zipped nothing", zipped(b""), "quarantined"
    yield "html", b"<html><body>404 Not found</body></html>", "quarantined"
    yield "zeros", bytes(4000), "quarantined"
    yield "random bytes", np.random.default_rng(3).bytes(4000), "quarantined"
    yield "one byte", b"\x1f", "quarantined"


def wrong_labels():
    """Yields label maps with values no source id has."""
    label = a_label().astype(np.int64)
    for value, dtype in ((-1, "i2"), (-1, "f4"), (7, "u1"), (4, "u1"), (255, "u1"), (256, "u2"), (300, "i4")):
        yield f"id {value} {dtype}", nifti(np.where(label == 3, value, label).astype(dtype))
    for value in (2**40, -(2**40)):
        yield f"id {value}", nifti(np.where(label == 3, value, label))
    yield "id 2**64 - 1", nifti(np.where(label == 3, np.uint64(2**64 - 1), label.astype(np.uint64)))
    for value in (0.5, 1e30, -1e30, 2.9):
        yield f"value {value}", nifti(np.where(label == 3, value, label).astype(np.float32))
    yield "fractions by slope", nifti(a_label(), scl_slope=0.4, scl_inter=0)


def odd_paths(kind):
    """Yields what is not a file."""
    yield "a folder", lambda path: path.mkdir(), "quarantined"
    yield "a folder with files", lambda path: (path.mkdir(), (path / "x.dcm").write_bytes(b"x")), "quarantined"
    yield "a link to nowhere", lambda path: path.symlink_to("nowhere.nii.gz"), "quarantined"
    yield "a link to itself", lambda path: path.symlink_to(path.name), "quarantined"
    yield "a pipe", lambda path: os.mkfifo(path), "quarantined"
    yield "a link to a pipe", lambda path: (os.mkfifo(f"{path}.fifo"), path.symlink_to(f"{path}.fifo")), "quarantined"
    yield "a device", lambda path: path.symlink_to("/dev/zero"), "quarantined"
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        yield (
            "unreadable",
            lambda path: (path.write_bytes(zipped(nifti(array_for(kind)))), path.chmod(0)),
            "quarantined",
        )


def all_mutants():
    mutants = []
    for source, files in FILES.items():
        for file in files:
            found = [(name, write, fate) for name, write, fate in damaged_bytes(source, file)]
            found += [(name, written(zipped(content)), fate) for name, content, fate in odd_headers(file)]
            found += [(name, written(content), fate) for name, content, fate in odd_containers(file)]
            found += odd_paths(file)
            if file == "seg.nii.gz":
                found += [(name, written(zipped(content)), "quarantined") for name, content in wrong_labels()]
            if file == "m/stomach.nii.gz":
                mask = array_for(file)
                found += [(f"mask of {v}", written(zipped(nifti(mask * v))), "quarantined") for v in (2, 3, 254)]
                found += [("mask of 255", written(zipped(nifti(mask * 255))), "converts")]
                found += [("half a mask", written(zipped(nifti(mask * np.float32(0.5)))), "quarantined")]
            mutants += [Mutant(f"{Path(file).name} {name}", source, file, write, fate) for name, write, fate in found]
        for name in ("with  blanks ", "Zürich Ångström", "数据 集", "a'b\"c", "[x]*?", "-rf", "a=b,c;d&e"):
            mutants.append(Mutant(f"path {name}", source, files[0], written(zipped(nifti(an_image()))), "converts"))
    for codes in ("LPS", "IPL", "ASR"):
        turned = nib.Nifti1Image(a_label(), AFFINE).as_reoriented(axcodes2ornt(codes))
        content = zipped(nifti(np.asarray(turned.dataobj), turned.affine))
        mutants.append(Mutant(f"label stored as {codes}", "Labels", "seg.nii.gz", written(content), "converts"))
    return mutants


def case_of(source, name):
    return f"{source[0]}_{''.join(c if c.isascii() and (c.isalnum() or c in '._-') else '_' for c in name)}"


@contextmanager
def in_time():
    """Fails what hangs, for instance on a pipe nobody writes to."""

    def stop(*_):
        pytest.fail(f"did not end within {LIMIT_S} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def write_sources(root, mutants):
    """Writes two sources of healthy cases and mutants, and returns what `merge` takes."""
    pairs = []
    for source, text in SOURCES.items():
        folder = root / f"{source} dåta"
        for index in range(HEALTHY):
            write_case(folder / f"healthy {index}", source)
        for mutant in mutants:
            if mutant.source == source:
                write_case(folder / mutant.name, source)
                path = folder / mutant.name / mutant.file
                path.unlink()
                mutant.write(path)
        (root / f"{source}.yaml").write_text(text)
        pairs.append((str(root / f"{source}.yaml"), folder))
    return pairs


def loaded(path):
    """Reads a file with nibabel, by its content and not by its name."""
    content = path.read_bytes()
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    is_second = 540 in (int.from_bytes(content[:4], order) for order in ("little", "big"))
    return (nib.Nifti2Image if is_second else nib.Nifti1Image).from_bytes(content)


def expected_labels(folder, mutant):
    """Returns what nibabel finds in a case, in the image's axes, and the image's affine."""
    image = loaded(folder / "ct.nii.gz")
    assert np.isfinite(image.get_fdata()).all()

    def turned(path):
        label = loaded(path)
        turn = ornt_transform(io_orientation(label.affine), io_orientation(image.affine))
        return np.rint(apply_orientation(label.get_fdata(), turn)).astype(int)

    if mutant.source == "Labels":
        return STORED[turned(folder / "seg.nii.gz")], image.affine
    expected = np.zeros(image.shape, np.uint8)
    for name, stored in zip(NAMES, STORED[1:], strict=True):
        expected[turned(folder / f"m/{name}.nii.gz") > 0] = stored
    return expected, image.affine


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """A merge of all mutants and some healthy cases, and one of the healthy cases alone."""
    root, mutants = tmp_path_factory.mktemp("mutants"), all_mutants()
    with variables_set(nnunet_folders(root)), in_time():
        pairs = write_sources(root / "sources", mutants)
        folder = merge(900, "Mutants", pairs, MergeOptions(num_processes=1))
        healthy = merge(901, "Healthy", write_sources(root / "healthy", []), MergeOptions(num_processes=1))
    return SimpleNamespace(
        cases={case_of(mutant.source, mutant.name): mutant for mutant in mutants},
        roots={Path(yaml).stem: place for yaml, place in pairs},
        folder=folder,
        healthy=healthy,
        content=read_json(folder / "dataset.json")["dataset"],
        quarantine=read_json(folder / "quarantine.json"),
    )


def test_there_are_many_mutants_and_each_is_either_there_or_quarantined(merged):
    assert len(merged.cases) == len(all_mutants()) >= 300
    healthy = {case_of(source, f"healthy {index}") for source in SOURCES for index in range(HEALTHY)}
    assert not set(merged.content) & set(merged.quarantine)
    assert set(merged.content) | set(merged.quarantine) == set(merged.cases) | healthy


def test_a_quarantined_case_has_a_reason_and_leaves_no_file(merged):
    wrong, files = [], {path.name for path in merged.folder.rglob("*")}
    for case, reason in merged.quarantine.items():
        mutant = merged.cases[case]
        place = merged.roots[mutant.source] / mutant.name
        if mutant.fate == "converts":
            wrong.append(f"{case} should be converted: {reason}")
        if not reason.strip() or "\n" in reason or str(place) not in reason or "unexpected" in reason:
            wrong.append(f"{case} has a bad reason: {reason!r}")
        if files & {f"{case}.nii.gz", f"{case}_0000.nii.gz", f"{case}.png"}:
            wrong.append(f"{case} is quarantined, but files of it are there")
    assert not wrong, "\n".join(wrong)


def test_a_converted_case_holds_what_nibabel_reads(merged):
    wrong = []
    for case, mutant in merged.cases.items():
        if case not in merged.content:
            continue
        if mutant.fate == "quarantined":
            wrong.append(f"{case} should be quarantined")
        expected, affine = expected_labels(merged.roots[mutant.source] / mutant.name, mutant)
        label = nib.load(merged.folder / f"labelsTr/{case}.nii.gz")
        if not np.array_equal(np.asarray(label.dataobj), expected) or not np.allclose(label.affine, affine, atol=1e-3):
            wrong.append(f"{case} is not converted exactly")
    assert not wrong, "\n".join(wrong)


def test_nnunet_reads_every_converted_case_and_sees_one_grid(merged):
    for case, entry in merged.content.items():
        image, label = (
            NibabelIOWithReorient().read_images(files) for files in (entry["images"], [merged.folder / entry["label"]])
        )
        assert image[0].shape == label[0].shape, case
        assert np.allclose(image[1]["spacing"], label[1]["spacing"], rtol=0.1), case


def test_healthy_cases_beside_mutants_are_converted_to_the_same_bytes(merged):
    labels = sorted((merged.healthy / "labelsTr").iterdir())
    assert len(labels) == 2 * HEALTHY
    for path in labels:
        assert (merged.folder / "labelsTr" / path.name).read_bytes() == path.read_bytes(), path.name


def test_nothing_unfinished_is_left(merged):
    assert [path.name for path in sorted(merged.folder.parent.iterdir())] == [merged.folder.name, merged.healthy.name]
    assert not [path for path in merged.folder.rglob("*") if path.name.startswith(".")]
    labels = {path.name.removesuffix(".nii.gz") for path in (merged.folder / "labelsTr").iterdir()}
    assert labels == set(merged.content)


def test_the_command_line_says_that_cases_are_quarantined(nnunet, tmp_path, capfd):
    names = ("ct.nii.gz text", "seg.nii.gz cut at 0", "stomach.nii.gz a pipe")
    pairs = write_sources(tmp_path / "sources", [mutant for mutant in all_mutants() if mutant.name in names])
    command = ["merge", "-d", "900", "-n", "M", "-np", "2", *(f"--source={yaml}={folder}" for yaml, folder in pairs)]
    folder = nnunet / "nnUNet_raw/Dataset900_M"
    with in_time():
        assert main([*command, "--strict"]) == 2
        assert not folder.exists()
        assert "stopped by --strict" in capfd.readouterr().err
        assert main(command) == 1
    assert len(read_json(folder / "quarantine.json")) == 4
    printed = capfd.readouterr()
    assert "4 cases could not be converted" in printed.out
    assert "Traceback" not in printed.out + printed.err
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main([*command, "--strict", "--overwrite"]) == 2
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert "Traceback" not in capfd.readouterr().err


def test_a_merge_without_a_single_good_case_leaves_nothing(nnunet, tmp_path):
    pairs = write_sources(tmp_path / "sources", [])
    for path in (tmp_path / "sources").rglob("ct.nii.gz"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no case could be converted \(8 quarantined\): L_healthy_0: "):
        merge(900, "M", pairs)
    assert list((nnunet / "nnUNet_raw").iterdir()) == []
