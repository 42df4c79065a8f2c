"""The benchmark of natural images: its pictures, and that the steps it times are those of real trainers."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_pretrain.phantom.coloured_shapes import SHAPES, TEXTURES, coloured_shapes, write_coloured_shapes

_FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(_FOLDER))
import vdt_steps  # noqa: E402

_SPEC = importlib.util.spec_from_file_location("vdt_benchmark", _FOLDER / "vdt.py")
benchmark = importlib.util.module_from_spec(_SPEC)
sys.modules["vdt_benchmark"] = benchmark
_SPEC.loader.exec_module(benchmark)


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_fills_a_good_part_of_its_circle_and_has_other_colours_than_its_surroundings(name):
    y, x = np.mgrid[-1:1:101j, -1:1:101j]
    inside = SHAPES[name](y, x)
    assert inside[np.hypot(y, x) > 1.05].sum() == 0
    assert 0.15 < inside[np.hypot(y, x) <= 1].mean() <= 1
    contrasts, textures = [], set()
    for seed in range(12):
        image, mask = coloured_shapes(np.random.default_rng(seed), [name], 64)
        background, texture = np.unique(mask).tolist()
        assert background == 0
        textures.add(texture)
        contrasts.append(np.abs(image[mask > 0].mean(0) - image[mask == 0].mean(0)))
    assert len(textures) > 2  # the outline does not tell the texture
    assert textures <= set(range(1, len(TEXTURES) + 1))
    spread = np.array(contrasts)
    assert (spread.mean(0) > 15).all()  # in each of the colours
    assert np.ptp(spread, 1).mean() > 15  # and not alike in all of them


def test_images_are_written_as_trees_of_classes_and_with_masks(tmp_path):
    write_coloured_shapes(tmp_path / "c", "classification", 12, 32)
    assert {path.name: len(list(path.iterdir())) for path in (tmp_path / "c").iterdir()} == dict.fromkeys(SHAPES, 2)
    write_coloured_shapes(tmp_path / "s", "segmentation", 5, 32)
    labels = json.loads((tmp_path / "s/labels.json").read_text(encoding="utf-8"))
    assert labels == {"background": 0, **{name: i for i, name in enumerate(TEXTURES, 1)}}
    names = sorted(path.name for path in (tmp_path / "s/images").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "s/masks").iterdir())
    assert all(Image.open(tmp_path / "s/masks" / name).size == (32, 32) for name in names)
    write_coloured_shapes(tmp_path / "again", "segmentation", 3, 32)
    assert (tmp_path / "again/images" / names[0]).read_bytes() == (tmp_path / "s/images" / names[0]).read_bytes()


def test_what_is_timed_has_equally_many_voxels():
    for scale in benchmark.SCALES.values():
        for target, natural, features in scale.timed:
            assert math.prod(target) == math.prod(natural)
            assert natural[0] == 3
            assert len(features) > 2  # with two stages nnU-Net gives its only output weight 0


def test_steps_are_those_of_the_trainers_on_one_network(nnunet):
    target, natural, features = benchmark.SCALES["test"].timed[0]
    arms = {arm for pair in vdt_steps.PAIRS for arm in pair}
    steps = {arm: vdt_steps.steps_of(nnunet, arm, target, natural, features, "cpu") for arm in arms}
    shapes = {}
    for arm, one in steps.items():
        before = [parameter.detach().clone() for parameter in one.trainer.network.parameters()]
        one()
        changed = [not p.equal(old) for p, old in zip(one.trainer.network.parameters(), before, strict=True)]
        assert sum(changed) > len(changed) / 2
        encoder = one.trainer.network.encoder
        shapes[arm] = [tuple(p.shape) for p in encoder.parameters()]
        depths = [stage.shape[2] for stage in encoder(one.batches[0]["data"])]
        assert depths == ([12, 6, 3] if arm == vdt_steps.STOCK else [3, 3, 3])
    assert len({tuple(found) for found in shapes.values()}) == 1
    assert type(steps[vdt_steps.SEGMENTATION].trainer).__name__ == vdt_steps.SEGMENTATION


def test_the_accuracy_of_each_pretext_is_read_from_its_final_validation(tmp_path):
    for name, summary in {
        "masks": {"foreground_mean": {"Dice": 0.5}},
        "digits": {"metrics": {"top-1": {"value": 0.75, "low": 0.7, "high": 0.8}}},
    }.items():
        for variant in benchmark.PRETEXTS[name].variants:
            path = benchmark.checkpoint_file(tmp_path, name, variant).parent / "validation/summary.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(summary), encoding="utf-8")
    rows = benchmark.pretext_table(tmp_path, ["masks", "digits"]).splitlines()[2:]
    assert rows[0] == "| masks | Dice 0.500 |"
    assert rows[-1] == "| digits | top-1 0.750 (0.700 to 0.800) |"
    assert len(rows) == 4
