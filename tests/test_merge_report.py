"""The report of a merge: what it says, that it is one file, that it is the same every time, and that it can be seen."""

import importlib
import re
import shutil
import subprocess
from html import unescape

import nibabel as nib
import numpy as np
import pytest
from nnunet_runs import SOURCES

from nnunet_pretrain.conversion import MergeOptions, find_source, merge
from nnunet_pretrain.conversion.layout import FoundCases
from nnunet_pretrain.conversion.licences import LICENCE_TERMS, licence_terms
from nnunet_pretrain.conversion.members import Member
from nnunet_pretrain.conversion.record import Record
from nnunet_pretrain.conversion.report import write_report
from nnunet_pretrain.conversion.report_facts import (
    OUTLIER_FACTOR,
    Volume,
    annotation_states,
    by_kind,
    kind_of,
    outliers,
    spacing_texts,
)
from nnunet_pretrain.html_page import Cell, Report
from nnunet_pretrain.labels import DEFAULT_SPACE

SWAPPED = "left and right are swapped"


@pytest.fixture(scope="module")
def spoiled(sources, tmp_path_factory):
    """The sources with one mirrored label, one image without label, and one KiTS23 case twice."""
    root = tmp_path_factory.mktemp("spoiled")
    shutil.copytree(sources, root, dirs_exist_ok=True)
    labels = sorted((root / "BTCV").rglob("label*.nii.gz"))
    image = nib.load(labels[0])
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj)[::-1], image.affine), labels[0])
    unlabelled = sorted((root / "BTCV").rglob("img*.nii.gz"))[0]
    shutil.copy(unlabelled, unlabelled.with_name("img0039.nii.gz"))
    cases = sorted((root / "KiTS23/dataset").iterdir())
    shutil.copytree(cases[0], cases[0].with_name(f"{cases[0].name[:-3]}199"))
    return root


def merged(root, **options):
    return merge(900, "Merged", [(name, root / name) for name in SOURCES], MergeOptions(**options))


@pytest.fixture(scope="module")
def folder(spoiled, tmp_path_factory):
    """A merge of the spoiled sources."""
    raw = tmp_path_factory.mktemp("raw")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_raw", str(raw))
        return merged(spoiled)


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def cells(page, start):
    """Returns the cells of the first table row that begins with a text."""
    for row in re.findall(r"<tr>(.*?)</tr>", page):
        found = [unescape(re.sub("<[^>]*>", "", cell)) for cell in re.findall(r"<td.*?</td>", row)]
        if found and found[0].startswith(start):
            return found
    raise AssertionError(f"no row begins with {start}")


def hint(page, start):
    """Returns class and text under the mouse of a coverage cell."""
    match = re.search(rf'<td class="([^"]*)" title="{re.escape(start)}: ([^"]*)"', page)
    assert match, start
    return match[1], match[2]


def test_the_summary_counts_what_came_in_and_what_became_of_it(page):
    cards = dict(re.findall(r"<b>([^<]*)</b><span>([^<]*)</span>", page))
    assert {what: number for number, what in cards.items() if what in ("cases", "sources", "quarantined")} == {
        "cases": "6",
        "sources": "3",
        "quarantined": "2",
    }
    assert "1 image found more than once." in page
    assert "nnunet_pretrain plan -d 900" in page
    assert "No source labels " in page


def test_every_source_has_a_row(page):
    # source, published, found, converted, quarantined, excluded, dropped, in the dataset, spacings, orientations
    assert cells(page, "BTCV") == ["BTCV", "30", "3", "1", "2", "", "", "1", "9.00", "9.00", "LPS 1"]
    assert cells(page, "KiTS23") == ["KiTS23", "489", "3", "3", "", "", "", "3", "9.00", "9.00", "IPL 3"]
    assert cells(page, "all")[2:8] == ["8", "6", "2", "0", "0", "6"]


def test_coverage_tells_full_from_set_from_none(page):
    assert hint(page, "BTCV, liver") == ("full", "full in 1, part of a set in 0 of 1 cases; occurs in 1")
    assert hint(page, "BTCV, liver_tumor")[0] == "set"
    assert hint(page, "BTCV, colon") == ("none", "not annotated")
    assert hint(page, "KiTS23, kidney_left") == ("set", "full in 0, part of a set in 3 of 3 cases; occurs in 3")
    assert hint(page, "KiTS23, kidney_right")[0] == "set"
    assert hint(page, "KiTS23, kidney_tumor")[0] == "full"
    assert hint(page, "AbdomenAtlas1.1, aorta") == ("full", "full in 2, part of a set in 0 of 2 cases; occurs in 2")


def test_states_follow_the_label_sets():
    def states(name):
        return annotation_states(find_source(name).scheme(DEFAULT_SPACE)[0], DEFAULT_SPACE)

    assert states("LiTS")["liver"] == states("LiTS")["liver_tumor"] == "full"
    assert states("CHAOS-CT")["liver_tumor"] == "absent"
    assert states("AbdomenAtlas1.1")["femur_left"] == "set"  # background may hide the shaft
    assert states("TotalSegmentatorV2")["colon"] == "set"  # the rectum may be in it
    assert states("MSD09")["liver"] == "none"


def test_what_was_left_out_is_named_with_its_reason(page):
    text = unescape(page)
    assert f"1 case: {SWAPPED}" in text
    assert re.search(rf"BTCV_00\d\d: {SWAPPED}: spleen lies \d+ mm to the right of liver", text)
    assert "1 case: image without label" in text
    assert "BTCV_0039: image without label: " in text


def test_duplicates_licences_and_doubts_are_shown(page, folder):
    assert "every voxel is equal" in page
    assert "both stay and share a fold" in page
    text = unescape(page)
    assert "no legal advice" in text
    assert "Unclear, ask: BTCV." in text
    assert "Strictest of the others: NC-SA" in text
    for name in SOURCES:
        source = find_source(name)
        assert all(part in text for part in (source.licence, source.citation, *source.notes))
        assert f'href="{source.url}"' in text


def test_pictures_lie_beside_the_page_and_inside_it(page, folder):
    pictures = sorted(path.name for path in (folder / "report").iterdir())
    cases = [path.name.replace(".nii.gz", ".png") for path in sorted((folder / "labelsTr").iterdir())]
    assert pictures == sorted([*cases, "volumes-1.png"])
    assert len(re.findall(r'src="data:image/jpeg;base64,', page)) == len(cases)
    assert page.count('src="data:image/png;base64,') == 1
    assert "kidney_left or kidney_right" in page  # the legend says what an id means in that source
    for wanted in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert wanted.startswith(("data:image/", "#", "https://")), wanted
    assert "url(" not in page
    assert "<script" not in page


def everything(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in [folder / "report.html", *sorted((folder / "report").iterdir())]
    }


def test_the_same_inputs_give_the_same_bytes_even_after_an_interruption(nnunet, spoiled, folder, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    expected = everything(folder)
    assert b".partial" not in expected[(folder / "report.html").relative_to(folder)]
    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module("nnunet_pretrain.conversion.merge"), "write_report", interrupted)
        with pytest.raises(KeyboardInterrupt):
            merged(spoiled)
    assert everything(merged(spoiled, resume=True)) == expected
    assert everything(merged(spoiled, overwrite=True, num_processes=2)) == expected
    assert everything(merged(spoiled, resume=True)) == expected


def test_dropped_duplicates_are_said_to_be_dropped(nnunet, spoiled):
    page = (merged(spoiled, drop_duplicates=True) / "report.html").read_text(encoding="utf-8")
    assert cells(page, "KiTS23")[3:8] == ["3", "", "", "1", "2"]
    assert "Dropped: 1 case" in page
    assert "dropped: KI23_" in page


def record(case, source, scheme, **facts):
    shape = {"spacing": [0.7, 0.7, 2.5], "orientation": "RAS", "voxel_ml": 0.001}
    return Record(case, source, "rules", scheme=scheme.model_dump(mode="json"), **{**shape, **facts})


def test_hostile_names_are_escaped(tmp_path):
    source = find_source("BTCV").model_copy(update={"title": '"><script>alert(1)</script>', "url": "javascript:bad()"})
    scheme, _ = source.scheme(DEFAULT_SPACE)
    reason = "<img src=x onerror=alert(2)> \udcff: broken"
    records = [record("BTCV_1", "BTCV", scheme, voxels={"5": 9}, warnings=["<b>odd</b>"])]
    members = [Member(source, tmp_path, FoundCases([], {"<i>case</i>": reason}, {"E": "<u>why</u>"}))]
    left_out = {"quarantined": {"<i>case</i>": reason}, "excluded": {"E": "<u>why</u>"}, "dropped": {}}
    page = write_report(tmp_path, "Dataset001_X", DEFAULT_SPACE, members, records, [], left_out).read_text("utf-8")
    for tag in ("<script", "<img src=x", "<i>case", "<u>", "<b>odd", "javascript:bad()</a>", 'href="javascript'):
        assert tag not in page
    assert "&lt;img src=x onerror=alert(2)&gt;" in page


def test_thousands_of_cases_stay_a_small_page(tmp_path):
    source = find_source("KiTS23")
    scheme, _ = source.scheme(DEFAULT_SPACE)
    records = [
        record(f"KI23_{i:05d}", "KiTS23", scheme, voxels={"3": 200_000 * (1 + i % 7 * (i % 5 == 0))}, warnings=["odd"])
        for i in range(3000)
    ]
    faulty = {f"KI23_x{i}": f"/data/{i}.nii.gz has shape ({i}, 1, 1), expected three dimensions" for i in range(3000)}
    members = [Member(source, tmp_path, FoundCases([], faulty, {}))]
    left_out = {"quarantined": faulty, "excluded": {}, "dropped": {}}
    path = write_report(tmp_path, "Dataset001_X", DEFAULT_SPACE, members, records, [], left_out)
    page = path.read_text("utf-8")
    assert len(page) < 500_000
    assert "3,000 cases: … has shape …, expected three dimensions" in page
    assert page.count("and 2,950 more") == 2


def test_unusual_volumes_are_far_from_the_median_of_enough_cases():
    usual = [Volume(f"c{i}", "S", 1000.0 + 10 * i) for i in range(9)]
    cut, slightly = Volume("cut", "S", 60.0), Volume("slightly", "S", 1000 * (OUTLIER_FACTOR - 0.2))
    (found,) = outliers({"liver": [*usual, cut, slightly]})
    assert found.volume == cut
    assert found.median_ml == pytest.approx(1040, rel=0.02)
    assert not outliers({"liver": [*usual[:3], cut]})


def test_spacing_is_told_apart_in_plane_and_through_plane():
    scheme, _ = find_source("KiTS23").scheme(DEFAULT_SPACE)
    lying = record("a", "KiTS23", scheme, spacing=[5.0, 0.5, 0.5], orientation="IPL")
    standing = record("b", "KiTS23", scheme, spacing=[0.7, 0.7, 1.0], orientation="RAS")
    assert spacing_texts([lying, standing]) == ["0.60 (0.50-0.70)", "3.00 (1.00-5.00)"]


@pytest.mark.parametrize(
    ("licence", "terms"),
    [
        ("CC BY-NC-ND 4.0 (one source)", "ND"),
        ("CC BY-NC-SA 4.0", "NC-SA"),
        ("CC BY-NC 4.0", "NC"),
        ("CC BY-SA 4.0", "SA"),
        ("CC BY 3.0", "BY"),
        ("CC0 1.0", "public domain"),
        ("unknown", "unclear"),
        ("not stated", "unclear"),
        ("doubtful: CC BY 4.0", "unclear"),
        ("contradictory: CC BY 4.0 here, CC BY-NC-SA there", "unclear"),
        ("some licence of its own", "unclear"),
    ],
)
def test_licences_are_sorted_by_what_they_demand(licence, terms):
    assert licence_terms(licence) == terms
    assert terms in LICENCE_TERMS


def test_remarks_of_a_kind_come_together():
    assert kind_of("/a/b_1.nii.gz is not readable as NIfTI: end of file") == "… is not readable as NIfTI"
    assert kind_of("kidney split: left 90 ml, right 80 ml") == "kidney split"
    assert kind_of("label01.nii.gz: header replaced by the image's") == "header replaced by the image's"
    grouped = by_kind([("a", "12 voxels in holes"), ("b", "odd"), ("c", "7 voxels in holes")])
    assert [(kind, len(entries)) for kind, entries in grouped.items()] == [("… voxels in holes", 2), ("odd", 1)]


def test_a_page_lists_its_sections_wherever_the_list_stands(tmp_path):
    report = Report(tmp_path / "r.html", "t")
    report.contents()
    report.section("Later & more", anchor="later")
    report.table(["a"], [[Cell("x", link="https://example.org/?a=1&b=2", hint='say "x"')]])
    report.write()
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert '<nav><a href="#later">Later &amp; more</a> </nav>' in page
    assert 'title="say &quot;x&quot;"><a href="https://example.org/?a=1&amp;b=2"' in page


@pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium")
def test_a_browser_shows_the_page(folder, tmp_path):
    from PIL import Image

    shot = tmp_path / "shot.png"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--hide-scrollbars", "--window-size=1280,4000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}"]
    subprocess.run([*command, (folder / "report.html").as_uri()], check=True, capture_output=True, timeout=600)
    with Image.open(shot) as picture:
        seen = np.asarray(picture.convert("RGB")).astype(int)
    assert seen.shape == (4000, 1280, 3)
    assert not (seen[:, -20:] < 200).any()  # nothing runs over the right edge
    ink = (seen.min(axis=2) < 200).reshape(8, 500, 1280).mean(axis=(1, 2))
    assert (ink > 0.004).all(), ink
    blue = (np.abs(seen - (33, 102, 172)).max(axis=2) < 8).mean()  # the coverage matrix
    assert blue > 0.002
