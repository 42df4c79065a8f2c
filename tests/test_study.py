"""The few-label study: subsets, arms, scores, statistics, and a real tiny study that is interrupted and extended."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
import torch

from nnunet_pretrain.checkpoints.reading import read_checkpoint
from nnunet_pretrain.files import sha256_of
from nnunet_pretrain.planning.settings import SETTINGS_KEY, PretrainSettings
from nnunet_pretrain.study import StudyOptions, run_study
from nnunet_pretrain.study.arms import ARMS, find_arm, settings_of
from nnunet_pretrain.study.design import design_runs, find_cases, number_of_cases, subset
from nnunet_pretrain.study.processes import Children, Interrupted
from nnunet_pretrain.study.report import write_report
from nnunet_pretrain.study.scores import Outputs, outputs_of, score_case
from nnunet_pretrain.study.statistics import (
    compare,
    epochs_to_best,
    equivalent_cases,
    estimate,
    running_median,
    spread_over_seeds,
)
from nnunet_pretrain.study.summary import summarise

NAN = float("nan")
POOL = tuple(f"case_{i:02d}" for i in range(30))


def test_fractions_are_rounded_up_and_never_empty():
    assert [number_of_cases(fraction, 30) for fraction in (0.001, 0.1, 0.11, 0.5, 1)] == [1, 3, 4, 15, 30]


def test_subsets_are_nested_and_differ_between_seeds():
    sets = [set(subset(POOL, 1, number)) for number in (1, 3, 10, 30)]
    assert [len(cases) for cases in sets] == [1, 3, 10, 30]
    assert all(small < large for small, large in pairwise(sets))
    assert set(subset(POOL, 2, 10)) != sets[2]


def test_every_arm_learns_from_the_same_cases_and_equal_fractions_are_one():
    runs = design_runs(POOL[:4], (0.1, 0.2, 1), 2, ("scratch", "pretrained"))
    assert [(run.seed, len(run.train), run.arm) for run in runs] == [
        (seed, number, arm) for seed in (0, 1) for number in (1, 4) for arm in ("scratch", "pretrained")
    ]
    assert all(a.train == b.train for a, b in zip(runs[::2], runs[1::2], strict=True))
    assert len({run.key for run in runs}) == len(runs)


@pytest.mark.parametrize(
    "wrong",
    [
        {"fractions": (0.0,)},
        {"fractions": ()},
        {"seeds": 0},
        {"name": "a__b"},
        {"test": "first"},
        {"arms": ()},
        {"device": "tpu"},
        {"nsd_mm": 0.0},
    ],
)
def test_impossible_options_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"must be|names no arm"):
        StudyOptions(1, tmp_path / "c.pth", **wrong)


def raw_target(nnunet, cases=10, **entries):
    raw = nnunet / "nnUNet_raw/Dataset001_A"
    for folder in ("imagesTr", "imagesTs", "labelsTs"):
        (raw / folder).mkdir(parents=True)
    for i in range(cases):
        (raw / f"imagesTr/c{i}_0000.nii.gz").touch()
    labels = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps({**labels, "numTraining": cases, **entries}), encoding="utf-8")
    return raw


def test_test_cases_are_those_of_a_fold_without_the_excluded_ones(nnunet):
    raw_target(nnunet)
    name = "Dataset001_A"
    first, second = find_cases(name, "0", ()), find_cases(name, "1", ())
    assert first.test == first.monitored
    assert (len(first.test), len(first.pool)) == (2, 8)
    assert not set(first.test) & set(first.pool)
    assert not set(first.test) & set(second.test)
    less = find_cases(name, "0", first.test[:1])
    assert less.test == first.test[1:]
    assert set(less.pool) == {*first.pool, first.test[0]}
    with pytest.raises(ValueError, match="folds 0 to 4"):
        find_cases(name, "5", ())
    with pytest.raises(ValueError, match="no held-out cases"):
        find_cases(name, "0", first.test)
    folds = nnunet / "nnUNet_preprocessed" / name / "splits_final.json"
    folds.parent.mkdir()
    folds.write_text(json.dumps([{"train": ["c1", "c2"], "val": ["c3"]}]), encoding="utf-8")
    assert find_cases(name, "0", ()) == type(first)(("c1", "c2"), ("c3",), ("c3",))
    folds.write_text(json.dumps([{"train": ["c1"], "val": ["other"]}]), encoding="utf-8")
    with pytest.raises(ValueError, match="such as 'other'"):
        find_cases(name, "0", ())


def test_images_ts_are_scored_only_with_labels(nnunet):
    raw = raw_target(nnunet)
    with pytest.raises(FileNotFoundError, match="no labels"):
        find_cases("Dataset001_A", "imagesTs", ())
    (raw / "labelsTs/t1.nii.gz").touch()
    with pytest.raises(FileNotFoundError, match="no image of 1 cases, such as 't1'"):
        find_cases("Dataset001_A", "imagesTs", ())
    (raw / "imagesTs/t1_0000.nii.gz").touch()
    found = find_cases("Dataset001_A", "imagesTs", ())
    assert (found.test, len(found.monitored), len(found.pool)) == (("t1",), 2, 8)


PLANS = {
    "plans_name": "plans",
    SETTINGS_KEY: {
        "training": {"num_epochs": 30, "warmup_epochs": 2, "initial_lr": 0.01},
        "fine_tuning": {"encoder_lr_factor": 0.5},
        "transfer": {"checkpoint": "c.pth", "heads": {"liver": ["liver", "liver_tumor"]}},
    },
}


def test_built_in_arms_change_what_they_say_and_nothing_else():
    plain = PretrainSettings.from_plans(PLANS)
    changed = {
        "encoder-only": plain.model_copy(update={"transfer": plain.transfer.model_copy(update={"parts": "encoder"})}),
        "new-heads": plain.model_copy(update={"transfer": plain.transfer.model_copy(update={"heads": {}})}),
        "no-warmup": plain.model_copy(update={"training": plain.training.model_copy(update={"warmup_epochs": 0})}),
        "low-lr": plain.model_copy(update={"training": plain.training.model_copy(update={"initial_lr": 0.001})}),
        "heads-first": plain.model_copy(
            update={"fine_tuning": plain.fine_tuning.model_copy(update={"heads_only_epochs": 3})}
        ),
        "layer-decay": plain.model_copy(
            update={"fine_tuning": plain.fine_tuning.model_copy(update={"layer_decay": 0.8})}
        ),
        "frozen-encoder": plain.model_copy(
            update={"fine_tuning": plain.fine_tuning.model_copy(update={"freeze_encoder": True})}
        ),
    }
    for name, arm in ARMS.items():
        assert settings_of(arm, PLANS) == changed.get(name, plain), name


def test_own_arms_are_merged_and_wrong_ones_refused(tmp_path):
    path = tmp_path / "arm.json"
    path.write_text('{"fine_tuning": {"layer_decay": 0.7}, "training": {"optimizer": "AdamW"}}', encoding="utf-8")
    settings = settings_of(find_arm(f"mine={path}"), PLANS)
    assert (settings.fine_tuning.layer_decay, settings.fine_tuning.encoder_lr_factor) == (0.7, 0.5)
    assert (settings.training.optimizer, settings.training.num_epochs) == ("AdamW", 30)
    path.write_text('{"fine_tuning": {"heads_only_epochs": 28}}', encoding="utf-8")
    with pytest.raises(ValueError, match="take 30 of 30 epochs"):
        settings_of(find_arm(f"mine={path}"), PLANS)
    with pytest.raises(ValueError, match="unknown arm 'mine'; known are scratch"):
        find_arm("mine")
    with pytest.raises(ValueError, match="another name"):
        find_arm(f"scratch={path}")
    for content, message in (
        ('{"fine_tuning": {"decay": 1}}', "unknown key 'fine_tuning.decay'; the keys there are heads_only_epochs"),
        ('{"fine": {}}', "unknown key 'fine'"),
        ("[1]", "valid dictionary"),
        ('{"training": {"seed": 3}}', "study's own"),
        ('{"folds": [{"train": ["a"], "val": []}]}', "study's own"),
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            find_arm(f"mine={path}")


def test_scores_of_labels_regions_ignore_and_absent_structures():
    labels = {"background": 0, "whole": [1, 2], "core": [2], "absent": [3], "seen": [4], "ignore": 5}
    outputs = outputs_of({"labels": labels})
    assert outputs == Outputs({"whole": (1, 2), "core": (2,), "absent": (3,), "seen": (4,)}, 5)
    reference, prediction = np.zeros((12, 12, 12), np.uint8), np.zeros((12, 12, 12), np.uint8)
    reference[2:6, 2:6, 2:6], reference[4:6, 2:6, 2:6] = 1, 2
    prediction[2:6, 2:6, 2:6] = 1
    prediction[8:10, 8, 8] = 4
    reference[10:] = 5
    prediction[10:] = 3  # on ignored voxels only
    scores = score_case(reference, prediction, (1.0, 2.0, 5.0), outputs, 1.0)
    assert scores["whole"] == {
        "Dice": 1.0, "NSD": 1.0, "reference_ml": 0.64, "FP_ml": 0.0, "false_positive": None
    }  # fmt: skip
    assert scores["core"] == {"Dice": 0.0, "NSD": 0.0, "reference_ml": 0.32, "FP_ml": 0.0, "false_positive": None}
    assert scores["absent"] == {"Dice": None, "NSD": None, "reference_ml": 0.0, "FP_ml": 0.0, "false_positive": False}
    assert scores["seen"] == {"Dice": 0.0, "NSD": 0.0, "reference_ml": 0.0, "FP_ml": 0.02, "false_positive": True}
    half = score_case(reference == 1, reference > 0, (1.0, 1.0, 1.0), Outputs({"a": (1,)}, None), 1.0)["a"]
    assert half["Dice"] == pytest.approx(2 * 32 / (32 + 64 + 288))
    assert 0 < half["NSD"] < 1
    assert half["FP_ml"] == pytest.approx(0.32)
    with pytest.raises(ValueError, match="shapes"):
        score_case(reference, prediction[1:], (1.0, 1.0, 1.0), outputs, 1.0)


def test_estimate_averages_seeds_within_cases_and_its_interval_covers_cases():
    values = np.array([[0.8, 0.4, NAN, NAN], [0.6, NAN, 0.9, NAN]])
    found = estimate(values)
    assert found.mean == pytest.approx((0.7 + 0.4 + 0.9) / 3)
    assert (found.cases, found.low, found.high) == (3, pytest.approx(0.4), pytest.approx(0.9))  # 1/27 a tail
    assert estimate(values) == found
    same = estimate(np.full((2, 5), 0.5))
    assert (same.mean, same.low, same.high) == (0.5, 0.5, 0.5)
    none = estimate(np.full((2, 3), NAN))
    assert math.isnan(none.mean)
    assert none.cases == 0
    # For many cases the interval is the mean -+ 1.96 standard errors.
    many = np.random.default_rng(1).normal(0.5, 0.1, (1, 400))
    wide = estimate(many)
    error = 1.96 * many.std() / 20
    assert (wide.low, wide.high) == (
        pytest.approx(many.mean() - error, abs=1e-3),
        pytest.approx(many.mean() + error, abs=1e-3),
    )
    assert spread_over_seeds(values) == (pytest.approx(0.6), pytest.approx(0.75))


def test_comparison_is_paired_and_says_when_cases_are_too_few():
    control = np.array([[0.1, 0.5, 0.3, 0.7, 0.2, 0.6]])
    better = compare(control + np.array([0.1, 0.2, 0.3, 0.15, 0.25, 0.05]), control)
    assert better.difference.mean == pytest.approx(0.175)
    assert better.difference.low > 0.05
    assert better.p == pytest.approx(2 / 2**6)  # all of six signs alike
    assert better.can_be_significant
    five = compare(control[:, :5] + 0.1 * np.arange(1, 6), control[:, :5])
    assert five.p == pytest.approx(2 / 2**5)
    assert not five.can_be_significant
    same = compare(control, control)
    assert (same.p, same.difference.mean, same.difference.high) == (1.0, 0.0, 0.0)
    unpaired = compare(np.array([[0.5, NAN]]), np.array([[NAN, 0.5]]))
    assert math.isnan(unpaired.p)
    assert unpaired.difference.cases == 0


def test_epochs_to_the_controls_best():
    assert running_median([0.1, 0.9, 0.2, 0.3, None, 0.5]).tolist() == pytest.approx([0.1, 0.2, 0.25, 0.4, 0.4, 0.5])
    rising = [0.1 * i for i in range(10)]
    assert running_median(rising) == pytest.approx(rising)  # neither delayed nor hurried
    assert epochs_to_best([0.5, 0.85, 0.9, 0.95, 0.97, 0.97], rising[:10]) == (3, 10)
    assert epochs_to_best([0.1] * 10, rising) == (None, 10)
    assert epochs_to_best(rising, [None, NAN]) == (None, None)


def test_equivalent_number_of_cases():
    assert equivalent_cases({1: 0.3, 4: 0.6, 8: 0.58, 16: 0.8}, 0.58) == 4
    assert equivalent_cases({1: 0.3}, 0.31) is None


def made_up_result(arm, number, seed, dice, false_positive=False):
    """Two structures in six cases; the second is in no case."""
    one = {"NSD": dice / 2, "reference_ml": 5.0, "FP_ml": 0.0, "false_positive": None}
    none = {"Dice": 0.0 if false_positive else None, "NSD": None, "reference_ml": 0.0, "FP_ml": 2.0 * false_positive}
    scores = {
        f"t{i}": {"liver": {**one, "Dice": dice + 0.01 * i}, "tumor": {**none, "false_positive": false_positive}}
        for i in range(6)
    }
    return {
        "arm": arm,
        "number_of_cases": number,
        "seed": seed,
        "scores": scores,
        "pseudo_dice": [dice * i / 10 for i in range(11)],
        "train_seconds": 10.0,
    }


def made_up_study():
    return [
        made_up_result(arm, number, seed, base + 0.1 * math.log2(number) + 0.01 * seed)
        for arm, base in (("pretrained", 0.5), ("scratch", 0.3))
        for number in (2, 8)
        for seed in (0, 1)
    ]


def test_summary_compares_equal_seeds_and_counts_false_positives():
    results = [*made_up_study(), made_up_result("pretrained", 16, 5, 0.8, false_positive=True)]
    entries = {(e["arm"], e["number_of_cases"]): e for e in summarise(results, 20)}
    assert next(iter(entries)) == ("scratch", 2)
    small = entries["pretrained", 2]
    assert small["Dice"]["mean"] == pytest.approx(0.5 + 0.1 + 0.005 + 0.025)
    assert (small["Dice"]["seed_min"], small["Dice"]["seed_max"]) == (pytest.approx(0.625), pytest.approx(0.635))
    assert small["against_scratch"]["Dice"]["difference"]["mean"] == pytest.approx(0.2)
    assert small["against_scratch"]["Dice"]["p"] == pytest.approx(2 / 2**6)
    assert small["against_scratch"]["epochs_to_scratch_best"][0] == {"seed": 0, "arm": 8, "scratch": 11, "of": 11}
    assert small["scratch_needs_cases"] == 8
    assert entries["pretrained", 8]["scratch_needs_cases"] is None
    assert small["false_positives"] == {"without": 12, "rate": 0.0, "ml": 0.0}
    alone = entries["pretrained", 16]
    assert "against_scratch" not in alone
    assert alone["false_positives"] == {"without": 6, "rate": 1.0, "ml": 2.0}
    assert alone["Dice"]["mean"] == pytest.approx((0.8 + 0.025) / 2)
    assert alone["outputs"]["liver"]["Dice"]["mean"] == pytest.approx(0.825)


def test_report_writes_tables_figure_and_csv(tmp_path):
    for result in made_up_study():
        path = tmp_path / f"runs/{result['arm']}_{result['number_of_cases']}_{result['seed']}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result), encoding="utf-8")
    text = write_report(tmp_path, 20, 1.0)
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == text + "\n"
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| pretrained | 2 (10%)")]
    assert rows[0][6:9] == ["+0.200 (+0.200 to +0.200)", "0.031", "8"]
    assert rows[0][9].startswith("8 against 11 (73%)")
    with (tmp_path / "results.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 8 * 6 * 2
    assert (lines[0]["arm"], lines[0]["output"], lines[1]["Dice"]) == ("pretrained", "liver", "")
    written = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert written["arms"][0]["outputs"]["tumor"]["Dice"]["mean"] is None
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="is finished"):
        write_report(tmp_path / "empty", 20, 1.0)


def script_named(folder, name, content):
    """Writes a console script that the search path finds."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{content}", encoding="utf-8")
    path.chmod(0o755)


def test_a_failed_command_shows_the_end_of_its_log(tmp_path, monkeypatch):
    script_named(tmp_path, "study_fails", "print('first'); raise SystemExit(3)")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    children = Children()
    with pytest.raises(ValueError, match=r"exit code 3.*ends with: first"):
        children.run(["study_fails", "x"], tmp_path / "logs/a.txt", os.environ)
    with pytest.raises(FileNotFoundError, match="no_such_command"):
        children.run(["no_such_command"], tmp_path / "logs/a.txt", os.environ)


def test_stopped_commands_get_one_signal_and_no_more_are_started(tmp_path, monkeypatch):
    script_named(
        tmp_path,
        "study_waits",
        "import signal, sys, time\n"
        "count = []\n"
        "signal.signal(signal.SIGINT, lambda *_: count.append(1))\n"
        "print('ready', flush=True)\n"
        "while not count: time.sleep(0.01)\n"
        "time.sleep(0.2); print('signals:', len(count)); sys.exit(130)\n",
    )
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    children, log, seen = Children(), tmp_path / "log.txt", []

    def work():
        try:
            children.run(["study_waits"], log, os.environ)
        except Interrupted as error:
            seen.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while not (log.is_file() and "ready" in log.read_text(encoding="utf-8")):
        time.sleep(0.01)
    children.stop()
    thread.join()
    assert len(seen) == 1
    assert "signals: 1" in log.read_text(encoding="utf-8")
    with pytest.raises(Interrupted):
        children.run(["study_waits"], log, os.environ)


@pytest.fixture
def tiny_study(pretrained, tmp_path, monkeypatch):
    """Options of a study of two steps on the target of the pre-training that several tests share."""
    for variable, value in pretrained.environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    training = {"num_epochs": 2, "num_iterations_per_epoch": 3, "num_val_iterations_per_epoch": 1}
    preset = tmp_path / "short.json"
    preset.write_text(json.dumps({"description": "short", "transfer": training}), encoding="utf-8")
    return {
        "dataset": 901,
        "checkpoint": pretrained.checkpoint,
        "fractions": (1.0,),
        "seeds": 1,
        "name": "tiny",
        "preset": str(preset),
        "device": "cpu",
        "out": tmp_path / "out",
        "num_processes": 1,
    }


@pytest.mark.slow
def test_a_real_study_is_resumed_extended_and_refuses_other_options(pretrained, tiny_study, tmp_path):
    lines = []
    first = run_study(StudyOptions(**tiny_study, arms=("pretrained",)), lines.append)
    result = json.loads((first / "runs/pretrained_1cases_s0.json").read_text(encoding="utf-8"))
    assert result["train"] == ["case_0080"]
    assert list(result["scores"]) == ["case_0081"]
    assert list(result["scores"]["case_0081"]) == ["liver", "kidneys"]
    assert len(result["pseudo_dice"]) == 2
    assert result["train_seconds"] > 0
    assert result["settings"]["training"]["seed"] == 0
    before = {path: path.stat().st_mtime_ns for path in first.glob("runs/*.json")}
    again = run_study(StudyOptions(**tiny_study), lines.append)
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in before} == before  # finished runs are not repeated
    assert {path.name for path in first.glob("runs/*")} == {"pretrained_1cases_s0.json", "scratch_1cases_s0.json"}
    assert {path.name for path in first.iterdir()} == {
        "runs", "logs", "study.json", "results.json", "results.csv", "table.md", "study.png"
    }  # fmt: skip
    assert "| scratch | 1 (100%) |" in lines[-1]
    log = (first / "logs/scratch_1cases_s0.txt").read_text(encoding="utf-8")
    assert "Control run: no pre-trained weights" in log
    assert "1 to train, 1 held out" in log
    for changed, message in (({"nsd_mm": 2.0}, "tolerance"), ({"preset": "tiny"}, "--preset")):
        with pytest.raises(ValueError, match=f"another .*{message}"):
            run_study(StudyOptions(**{**tiny_study, **changed}), lines.append)
    # A run of other settings lies where this one belongs.
    memory = first / "study.json"
    memory.rename(tmp_path / "kept.json")
    (first / "runs/scratch_1cases_s0.json").unlink()
    longer = json.loads((tmp_path / "short.json").read_text(encoding="utf-8"))
    longer["transfer"]["num_epochs"] = 3
    (tmp_path / "short.json").write_text(json.dumps(longer), encoding="utf-8")
    with pytest.raises(ValueError, match="is of a run with other"):
        run_study(StudyOptions(**tiny_study), lines.append)


@pytest.mark.slow
def test_an_interrupted_study_saves_and_goes_on(pretrained, tiny_study, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # the log must grow while the run goes on, without it too
    preset = json.loads((tmp_path / "short.json").read_text(encoding="utf-8"))
    preset["transfer"].update(num_iterations_per_epoch=15, save_every=1)
    (tmp_path / "short.json").write_text(json.dumps(preset), encoding="utf-8")
    options = {**tiny_study, "name": "stopped", "arms": ("scratch",)}
    code = f"from pathlib import PosixPath\nfrom nnunet_pretrain.study import *\nrun_study(StudyOptions(**{options!r}))"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8") as process:
        log = tmp_path / "out/logs/scratch_1cases_s0.txt"
        while not (log.is_file() and "Epoch 0" in log.read_text(encoding="utf-8")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        errors = process.stderr.read()
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert "Stopped by SIGINT; continue with --c." in log.read_text(encoding="utf-8")
    assert not list((tmp_path / "out/runs").glob("*"))
    run_study(StudyOptions(**options), lambda line: None)
    assert "Continuing; the pre-trained weights are not loaded again." in log.read_text(encoding="utf-8")
    result = json.loads((tmp_path / "out/runs/scratch_1cases_s0.json").read_text(encoding="utf-8"))
    assert len(result["pseudo_dice"]) == 2


@pytest.mark.slow
def test_a_real_study_runs_an_arm_of_another_checkpoint_and_notices_when_it_changes(pretrained, tiny_study, tmp_path):
    other = tmp_path / "other.pth"
    content = read_checkpoint(pretrained.checkpoint)
    content["network_weights"] = {name: tensor * 1.5 for name, tensor in content["network_weights"].items()}
    torch.save(content, other)
    arms = ("pretrained", f"other={other}")
    folder = run_study(StudyOptions(**{**tiny_study, "name": "arms"}, arms=arms), lambda line: None)
    first, second = (
        json.loads((folder / f"runs/{arm}_1cases_s0.json").read_text(encoding="utf-8"))
        for arm in ("pretrained", "other")
    )
    assert second["settings"]["transfer"]["sha256"] == sha256_of(other)
    assert {key for key in first["settings"] if first["settings"][key] != second["settings"][key]} == {"transfer"}
    assert f"weights from {other}" in (folder / "logs/other_1cases_s0.txt").read_text(encoding="utf-8")
    content["current_epoch"] += 1
    torch.save(content, other)
    with pytest.raises(ValueError, match=r"arm 'other' of the study .* was begun with another transfer"):
        run_study(StudyOptions(**{**tiny_study, "name": "arms"}, arms=arms), lambda line: None)
