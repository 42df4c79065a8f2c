"""The progress file and figure of a pre-training."""

import json
import math
import warnings

import numpy as np
import pytest
from PIL import Image

from nnunet_pretrain.training.progress import EpochProgress, group_styles, plot_progress, write_progress_json


def epochs(pseudo_dice):
    return [
        EpochProgress(
            epoch=epoch,
            lr=np.float64(0.01),
            train_loss=-0.123456789,
            val_loss=math.nan,
            mean_dice=0.5,
            ema_dice=None,
            seconds=1.5,
            waiting_share=np.float32(0.25),
            cases_seen={source: np.int64(3) for source in dice},
            pseudo_dice=dice,
        )
        for epoch, dice in enumerate(pseudo_dice)
    ]


def test_progress_is_strict_json_with_one_line_per_epoch(tmp_path):
    path = tmp_path / "training_progress.json"
    write_progress_json(path, epochs([{"KiTS23": {"kidney": math.inf, "kidney_tumor": None}}]))
    write_progress_json(path, epochs([{"KiTS23": {"kidney": math.nan}}, {"KiTS23": {"kidney": np.float64(0.25)}}]))

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    text = path.read_text(encoding="utf-8")
    first, second = json.loads(text, parse_constant=refuse)
    assert (first["pseudo_dice"], first["val_loss"]) == ({"KiTS23": {"kidney": None}}, None)
    assert (second["pseudo_dice"], second["epoch"]) == ({"KiTS23": {"kidney": 0.25}}, 1)
    assert (second["train_loss"], second["waiting_share"], second["cases_seen"]) == (-0.123457, 0.25, {"KiTS23": 3})
    assert len(text.splitlines()) == 4
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    write_progress_json(path, [])
    assert json.loads(path.read_text(encoding="utf-8")) == []


def picture(path, *args):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_progress(path, *args)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(("sources", "groups", "number"), [(1, 1, 1), (22, 40, 2), (2, 3, 400), (2, 2, 0)])
def test_progress_can_be_drawn_at_any_size(sources, groups, number, tmp_path):
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(number):
        values = np.where(rng.random((sources, groups)) < 0.3, np.nan, rng.random((sources, groups)))
        drawn.append({f"s{i}": {f"g{j}": values[i, j] for j in range(i % groups, groups)} for i in range(sources)})
    image = picture(tmp_path / "progress_sources.png", epochs(drawn))
    assert image.shape[1] == 1440
    assert (image.shape[0] > 1000) == (sources == 22)
    assert (np.ptp(image, axis=-1).max() > 50) == bool(number)  # colours, not only grey text
    assert [file.name for file in tmp_path.iterdir()] == ["progress_sources.png"]


def test_the_figure_tells_undecidable_from_not_met_and_from_zero(tmp_path):
    known = {"liver": 0.5}
    dice = {"undecidable": known, "not met": {**known, "spleen": None}, "zero": {**known, "spleen": 0.0}}
    images = {
        name: picture(tmp_path / "figure.png", epochs([{"s": values}]), ["liver", "spleen"], ["s"])
        for name, values in dice.items()
    }
    darkest = (68, 1, 84)  # viridis at 0
    cells = {name: (image == darkest).all(-1).sum() for name, image in images.items()}
    assert cells["undecidable"] == cells["not met"] == 0
    assert cells["zero"] > 300
    pale = {name: (image == 237).all(-1).sum() for name, image in images.items()}
    assert pale["not met"] > pale["undecidable"] + 300


def test_a_value_once_met_stays_in_the_table(tmp_path):
    """An epoch without a voxel of the group must not blank its cell."""
    met, after = [{"s": {"liver": 0.0, "spleen": 0.3}}], [{"s": {"liver": None, "spleen": 0.3}}]
    image = picture(tmp_path / "figure.png", epochs(met + after))
    assert (image == (68, 1, 84)).all(-1).sum() > 300


def test_forty_groups_look_different():
    styles = group_styles([str(i) for i in range(40)])
    assert len({(tuple(style["color"]), style["linestyle"]) for style in styles}) == 40
    assert styles[:7] == group_styles(list("abcdefg"))


def test_styles_left_behind_by_nnunets_figure_do_not_show(tmp_path):
    import matplotlib as mpl

    entries = epochs([{"A": {"liver": 0.5, "spleen": 0.0}}] * 3)
    plot_progress(tmp_path / "plain.png", entries)
    with mpl.rc_context({"axes.grid": True, "axes.facecolor": "red", "font.size": 30}):
        plot_progress(tmp_path / "styled.png", entries)
        assert mpl.rcParams["font.size"] == 30
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "styled.png").read_bytes()
