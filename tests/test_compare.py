"""What a comparison of checkpoint and target recommends, and why."""

import re

import pytest

from nnunet_pretrain.transfer.compare import _recommend, _shared_window
from nnunet_pretrain.transfer.plan_transfer import _usual_preset

CT = {"spacing": [1.5, 1.5, 1.5], "patch_size": [96, 96, 96], "normalization_schemes": ["CTNormalization"]}
KEY = "foreground_intensity_properties_per_channel"


def window(low, high):
    return {KEY: {"0": {"percentile_00_5": low, "percentile_99_5": high}}}


@pytest.mark.parametrize(
    ("changes", "spacing", "channels", "shared", "keep", "reason"),
    [
        ({}, [2.0, 1.5, 1.0], ("CT",), 1.0, "pretrained", "close enough"),
        ({}, [5.0, 0.8, 0.8], ("CT",), 1.0, "target", "spacing of 5 mm is 3.3 times away from the checkpoint's 1.5 mm"),
        ({}, [1.5, 1.5, 1.5], ("T1",), 1.0, "target", "trained with CTNormalization, which does not suit .* T1"),
        ({}, [1.5, 1.5, 1.5], ("CT",), 0.27, "target", "share only 27% of the narrower one"),
        ({"spacing": None}, [1.5, 1.5, 1.5], ("CT",), 1.0, "target", "does not say at which spacing"),
        ({"spacing": [1.5, 1.5], "patch_size": [96, 96]}, [9, 1.5, 1.5], ("CT",), 1.0, "pretrained", "2D network"),
    ],
)
def test_recommendation(changes, spacing, channels, shared, keep, reason):
    found, why = _recommend({**CT, **changes}, spacing, channels, shared)
    assert found == keep
    assert re.search(reason, why)


def test_windows_are_compared_by_the_narrower_one():
    assert _shared_window(window(-964, 312), window(-9, 205)) == 1
    assert _shared_window(window(-34, 290), window(-930, 53)) == pytest.approx(87 / 324)
    assert _shared_window(window(-34, 0), window(10, 53)) == 0
    assert _shared_window({KEY: None}, window(10, 53)) == 1


def checkpoint(preset=None, origin=None):
    plans = {"nnunet_pretrain": {"preset": preset}} if preset else {}
    extras = {"nnunet_pretrain": {"origin": {"format": origin}}} if origin else {}
    return {"init_args": {"plans": plans, **extras}}


def test_the_preset_is_that_of_the_pretraining_or_of_its_authors(tmp_path):
    said = []
    assert _usual_preset(checkpoint("resenc_m"), said.append) == "resenc_m"
    assert _usual_preset(checkpoint(origin="SuPreM (SegResNet)"), said.append) == "suprem"
    assert _usual_preset(checkpoint(), said.append) == "default"
    (tmp_path / "own.json").write_text("{}", encoding="utf-8")
    assert _usual_preset(checkpoint(str(tmp_path / "own.json")), said.append) == str(tmp_path / "own.json")
    assert said == []
    assert _usual_preset(checkpoint("/elsewhere/own.json"), said.append) == "default"
    assert "preset /elsewhere/own.json is not here" in said[0]
