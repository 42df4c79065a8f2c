"""Settings, schedule, splits and the presets."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_pretrain.folders import leaf
from nnunet_pretrain.planning import PretrainSettings, load_preset, preset_names
from nnunet_pretrain.training.label_set_training import hold_out
from nnunet_pretrain.training.planned_training import PlannedTraining
from nnunet_pretrain.training.schedule import WarmupDecayLR


def test_without_warm_up_the_schedule_is_nnunets():
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

    def rates(make):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
        schedule, values = make(optimizer), []
        for epoch in range(10):
            schedule.step(epoch)
            values.append(optimizer.param_groups[0]["lr"])
        return values

    assert rates(lambda o: WarmupDecayLR(o, 10)) == pytest.approx(rates(lambda o: PolyLRScheduler(o, 0.01, 10)))


def test_warm_up_rises_and_ratios_between_groups_hold():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": parameters[:1], "lr": 1e-3}, {"params": parameters[1:], "lr": 1e-5}])
    schedule = WarmupDecayLR(optimizer, 10, warmup_epochs=4)
    rates = []
    for epoch in range(10):
        schedule.step(epoch)
        rates.append([group["lr"] for group in optimizer.param_groups])
    first = [rate[0] for rate in rates]
    assert np.all(np.diff(first[:5]) > 0)
    assert np.all(np.diff(first[4:]) < 0)
    assert first[4] == pytest.approx(1e-3)
    assert [a / b for a, b in rates] == pytest.approx([100] * 10)


def test_augmentation_is_nnunets_without_its_stopwatch(monkeypatch):
    """Which of two ways to blur is faster would decide about the last digits, and differ between two runs."""

    def fail(self, *arguments):
        raise AssertionError("timed")

    monkeypatch.setattr(GaussianBlurTransform, "_benchmark_wrapper", fail)
    planned = PlannedTraining.__new__(PlannedTraining)
    arguments = ((8, 8, 8), (0, 0), None, (0, 1, 2), False)
    found = []
    for transforms in (planned.get_training_transforms(*arguments), nnUNetTrainer.get_training_transforms(*arguments)):
        blur = next(t for t in transforms.transforms if isinstance(getattr(t, "transform", t), GaussianBlurTransform))
        blur.apply_probability = 1
        found.append((blur, [type(t).__name__ for t in transforms.transforms]))
    (ours, names), (stock, stock_names) = found
    assert names == stock_names
    ours.transform.p_per_channel = stock.transform.p_per_channel = 1
    assert torch.isfinite(ours(image=torch.rand(1, 8, 8, 8))["image"]).all()
    with pytest.raises(AssertionError, match="timed"):
        stock(image=torch.rand(1, 8, 8, 8))


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_valid(name):
    assert load_preset(name).description


def test_an_unknown_preset_or_a_wrong_key_names_the_right_ones():
    with pytest.raises(ValueError, match=r"unknown preset 'huge'; known are default, .*tiny"):
        load_preset("huge")
    plans = {"plans_name": "P", "nnunet_pretrain": {"training": {"learning_rate": 1}}}
    with pytest.raises(
        ValueError, match=r"plans 'P', key 'nnunet_pretrain': unknown key 'training.learning_rate'; .*initial_lr"
    ):
        PretrainSettings.from_plans(plans)
    with pytest.raises(ValueError, match=r"training.num_epochs: .*greater than or equal to 1, got 0"):
        PretrainSettings.from_plans({"nnunet_pretrain": {"training": {"num_epochs": 0}}})
    with pytest.raises(ValueError, match="key 'nnunet_pretrain' is missing; make the plans with"):
        PretrainSettings.from_plans({"plans_name": "nnUNetPlans"})


def test_settings_survive_the_plans():
    settings = PretrainSettings(preset="tiny", training=load_preset("tiny").training)
    plans = json.loads(json.dumps({"nnunet_pretrain": settings.model_dump(mode="json", exclude_none=True)}))
    assert PretrainSettings.from_plans(plans) == settings


def test_fold_all_holds_out_a_share_of_every_source():
    entries = {f"a{i:03d}": {"source": "A", "scheme": "A"} for i in range(100)}
    entries |= {f"b{i}": {"source": "B", "scheme": f"B{i}"} for i in range(3)} | {"c": {"source": "C", "scheme": "C"}}
    training, held_out = hold_out(sorted(entries), entries, 0.02)
    assert not set(training) & set(held_out)
    assert sorted(training + held_out) == sorted(entries)
    assert [sum(case.startswith(s) for case in held_out) for s in "abc"] == [2, 1, 0]
    assert hold_out(sorted(entries), entries, 0.02)[1] == held_out
    assert hold_out(sorted(entries), entries, 0.0) == (sorted(entries), sorted(entries))


def test_the_trainers_folder_holds_recipes_only():
    names = [path.name for path in leaf("trainers").glob("*.py") if path.name != "__init__.py"]
    assert names
    assert all(name.startswith("nnunet_pretrain_") for name in names)


@pytest.mark.parametrize(
    ("labels", "transpose_forward", "patch", "axis"),
    [
        (("kidney_left", "kidney_right"), [0, 1, 2], (16, 32, 32), 2),
        (("kidney_left", "kidney_right"), [2, 0, 1], (16, 32, 32), 0),
        (("Left Kidney", "Right kidney"), [0, 1, 2], (32, 32), 1),
        (("left_atrium", "liver"), [0, 1, 2], (16, 32, 32), None),
        (("kidney", "liver"), [0, 1, 2], (16, 32, 32), None),
    ],
)
def test_the_axis_that_swaps_left_and_right_is_known(labels, transpose_forward, patch, axis):
    trainer = object.__new__(PlannedTraining)  # nnU-Net's constructor wants folders on disk
    trainer.dataset_json = {"labels": {"background": 0, **{name: i for i, name in enumerate(labels, start=1)}}}
    trainer.plans_manager = SimpleNamespace(transpose_forward=transpose_forward)
    trainer.configuration_manager = SimpleNamespace(patch_size=patch)
    assert trainer.left_right_axis() == axis
