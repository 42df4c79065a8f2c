"""The demo's parts: running commands once, real data in three forms, pictures and the page. CI runs the demo itself."""

import json
import sys

import nibabel as nib
import numpy as np
import pytest

from nnunet_pretrain.conversion import find_source
from nnunet_pretrain.conversion.layout import find_cases
from nnunet_pretrain.demo.commands import Workflow
from nnunet_pretrain.demo.pictures import colours, overlay
from nnunet_pretrain.demo.real_data import SOURCE, find_real_source
from nnunet_pretrain.demo.report import dice_table
from nnunet_pretrain.demo.run import run_demo
from nnunet_pretrain.html_page import Report
from nnunet_pretrain.phantom.datasets import write_phantom_source

PYTHON = sys.executable.rsplit("/", 1)[-1]


def workflow(folder, **environment):
    lines = []
    return Workflow(folder, environment, lines.append), lines


def test_a_finished_command_is_not_run_again(tmp_path):
    command = [PYTHON, "-c", f"open({str(tmp_path / 'ran')!r}, 'a').write('x')"]
    for expected in ("[1] $ ", "[1] done before: "):
        flow, lines = workflow(tmp_path)
        flow.run(command)
        assert lines[0].startswith(expected)
        assert (tmp_path / "ran").read_text(encoding="utf-8") == "x"


def test_an_interrupted_training_continues(tmp_path):
    command = [PYTHON, "-c", "import sys; print('Epoch 0 '); print('Epoch 1 '); sys.exit('--c' not in sys.argv)"]
    flow, _ = workflow(tmp_path)
    with pytest.raises(ValueError, match=r"failed with exit code 1; full log in .*01_python"):
        flow.run(command, epochs=2, resume=lambda: False)
    flow, lines = workflow(tmp_path)
    flow.run(command, epochs=2, resume=lambda: True)
    assert lines[0].endswith(" --c")


def test_commands_see_the_environment_and_leave_a_log(tmp_path):
    flow, _ = workflow(tmp_path, nnUNet_raw="/somewhere")
    flow.run([PYTHON, "-c", "import os; print(os.environ['nnUNet_raw'])"])
    assert next((tmp_path / "logs").iterdir()).read_text(encoding="utf-8") == "/somewhere\n"
    with pytest.raises(FileNotFoundError, match="command 'nosuch' not found; install the package"):
        flow.run(["nosuch"])


def test_real_data_in_three_forms(tmp_path):
    source = find_source(SOURCE)
    write_phantom_source(source, tmp_path / "dataset", [1], spacing_mm=(12.0, 12.0, 12.0))
    case = tmp_path / "dataset/0001"
    assert find_real_source(tmp_path / "dataset", tmp_path) == find_real_source(case, tmp_path) == case
    assert [files.image for files in find_cases(source, case).cases] == [case / "ct.nii.gz"]

    flat = tmp_path / "flat"
    flat.mkdir()
    image = nib.load(case / "ct.nii.gz")
    labels = np.zeros(image.shape, np.uint8)
    labels[1:3], labels[4:6] = 5, 24
    nib.save(image, flat / "one_ct.nii.gz")
    nib.save(nib.Nifti1Image(labels, image.affine), flat / "one_seg.nii.gz")
    (flat / "class_map.json").write_text(json.dumps({"5": "liver", "24": "kidney_cyst_right", "90": "brain"}))
    root = find_real_source(flat, tmp_path / "work")
    (files,) = find_cases(source, root).cases
    assert files.image.samefile(flat / "one_ct.nii.gz")
    assert set(files.masks) == {"liver", "kidney_cyst_right", "brain"}
    assert np.array_equal(np.asanyarray(nib.load(files.masks["liver"]).dataobj), labels == 5)
    with pytest.raises(FileNotFoundError, match=r"no real CT found in .*; expected ct.nii.gz with segmentations/"):
        find_real_source(tmp_path, tmp_path)


def test_pictures_put_the_patients_right_on_the_left(tmp_path):
    """A bright block at the patient's right, stored LPS, must appear on the left half of the picture."""
    ras = np.full((20, 16, 12), -1000, np.int16)
    ras[14:, 4:12, 3:9] = 200
    affine = np.diag([1.0, 1, 1, 1])
    stored = nib.Nifti1Image(ras, affine).as_reoriented(nib.orientations.axcodes2ornt(("L", "P", "S")))
    nib.save(stored, tmp_path / "i.nii.gz")
    nib.save(nib.Nifti1Image((stored.get_fdata() > 0).astype(np.uint8), stored.affine), tmp_path / "l.nii.gz")
    figure = overlay(
        tmp_path / "i.nii.gz", {"image": None, "labels": tmp_path / "l.nii.gz"}, {1: "liver"}, colours(["liver"])
    )
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert shown[:, :10].mean() > shown[:, 10:].mean()
    painted = np.asarray(figure.axes[1].images[1].get_array())[..., 3]
    assert (painted[:, :6] > 0).any()
    assert not painted[:, 10:].any()


def test_the_page_is_one_file_and_escapes_text(tmp_path):
    report = Report(tmp_path / "r.html", "a < b")
    report.section("x & y", "text")
    report.table(*dice_table({"one": {"liver": 0.5, "spleen": 1.0}, "two": {"liver": 0.25, "spleen": 0.75}}))
    report.commands(["nnunet_pretrain merge <x>"])
    report.write()
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<title>a &lt; b</title>" in page
    assert "&lt;x&gt;" in page
    assert "<td>mean</td><td>0.750</td><td>0.500</td>" in page
    assert "src=" not in page.replace('src="data:', "")


def test_a_folder_with_something_else_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no demo"):
        run_demo(tmp_path)
    (tmp_path / "demo.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a demo with other settings"):
        run_demo(tmp_path)
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "precious"
