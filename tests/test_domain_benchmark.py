"""The benchmark of domains: its data, how it joins studies, and what it counts as the memory of a branch."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

_FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(_FOLDER))
import domain_steps  # noqa: E402

_SPEC = importlib.util.spec_from_file_location("domains_benchmark", _FOLDER / "domains.py")
benchmark = importlib.util.module_from_spec(_SPEC)
sys.modules["domains_benchmark"] = benchmark
_SPEC.loader.exec_module(benchmark)

SCALE = benchmark.SCALES["test"]
TIMED = SCALE.timed[0]


def structures(domain):
    return {name for united in domain.labels.values() for name in united}


def test_the_target_is_unseen():
    domains = [*benchmark.DOMAINS.values(), benchmark.TARGET_DOMAIN]
    for what in ("contrast", "spacing"):
        assert len({getattr(domain, what) for domain in domains}) == 4
    assert len({frozenset(domain.labels.items()) for domain in domains}) == 4
    known = set().union(*map(structures, benchmark.DOMAINS.values()))
    new = set(benchmark.TARGET_DOMAIN.labels[benchmark.UNLABELLED_ELSEWHERE])
    assert not new & known
    assert structures(benchmark.TARGET_DOMAIN) & known


def test_domains_are_drawn_once_from_different_patients(tmp_path):
    benchmark.draw(tmp_path, SCALE)
    files = sorted((tmp_path / "nnUNet_raw").rglob("*.nii.gz"))
    images = [path for path in files if path.parent.name == "imagesTr"]
    assert len({path.name for path in images}) == len(images) == 3 * SCALE.cases + 3
    for name, domain in {**benchmark.DOMAINS, benchmark.TARGET: benchmark.TARGET_DOMAIN}.items():
        image = nib.load(next(path for path in images if path.parts[-3] == name))
        np.testing.assert_allclose(image.header.get_zooms(), np.multiply(domain.spacing, SCALE.spacing_mm), rtol=1e-3)
        labels = (nib.load(path) for path in files if path.parent.name == "labelsTr" and path.parts[-3] == name)
        assert set(range(1, len(domain.labels) + 1)) <= {i for label in labels for i in np.unique(label.dataobj)}
    written = [path.stat().st_mtime_ns for path in files]
    benchmark.draw(tmp_path, SCALE)
    assert [path.stat().st_mtime_ns for path in files] == written


def write_run(folder, arm, seed, dice, curve, cases=2):
    score = {"Dice": dice, "NSD": dice, "reference_ml": 1.0, "FP_ml": 0.0, "false_positive": None}
    result = {
        "arm": arm,
        "seed": seed,
        "number_of_cases": cases,
        "scores": {case: {"liver": score, "bladder": score} for case in ("a", "b")},
        "pseudo_dice": curve,
        "train_seconds": 1.0,
    }
    path = folder / f"runs/{arm}_{cases}cases_s{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result), encoding="utf-8")


def rows_of(text, start):
    """Returns the cells of all rows of Markdown tables that begin so."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return [row for row in rows if row[0] == start]


def test_studies_are_joined_to_one_with_an_arm_for_every_start(tmp_path):
    folders = {"all": tmp_path / "one", "ct-alone": tmp_path / "two"}
    for seed in (0, 1):
        write_run(folders["all"], "scratch-target", seed, 0.5, [0.1, 0.2, 0.3, 0.4])
        write_run(folders["all"], "keep-target", seed, 0.75, [0.4, 0.5, 0.6, 0.7])
        write_run(folders["ct-alone"], "keep-target", seed, 0.625, [0.3, 0.4, 0.5, 0.6])
    text = benchmark.evidence(tmp_path, folders, pool=4, nsd_mm=9)
    assert rows_of(text, "scratch")[0][2].startswith("0.500")
    assert rows_of(text, "all")[0][1:3] == ["2 (50%)", "0.750 (0.750 to 0.750)"]
    assert rows_of(text, "ct-alone")[0][6].startswith("+0.125")
    assert rows_of(text, "all - scratch") == [["all - scratch", "2", "2", "+0.250 (+0.250 to +0.250)", "0.5"]]
    assert rows_of(text, "all - ct-alone")[0][3].startswith("+0.125")
    epochs = rows_of(text, "all")[-1]
    assert (epochs[2], epochs[4], epochs[-1]) == ("0.400 (1)", "0.500 (2)", "0.700 (4)")
    assert (tmp_path / "evidence/study.png").is_file()
    assert len(list((tmp_path / "evidence/runs").iterdir())) == 6


def write_plans(work, start, patch):
    name = f"nnUNetTransferPlans_{start}-target__scratch"
    configuration = {"data_identifier": f"{name}_3d_fullres", "patch_size": patch}
    plans = {
        "plans_name": name,
        "configurations": {"3d_fullres": configuration},
        "nnunet_pretrain": {"training": {"num_epochs": 2}, "fine_tuning": {}, "transfer": {}},
    }
    path = work / "nnUNet_preprocessed" / benchmark.TARGET / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plans), encoding="utf-8")


def test_a_control_is_shared_by_starts_with_equal_plans_only(tmp_path):
    for start, patch in (("all", [16, 16, 16]), ("ct-alone", [16, 16, 16]), ("t1-alone", [16, 16, 24])):
        write_plans(tmp_path, start, patch)
    preprocessed = tmp_path / "nnUNet_preprocessed" / benchmark.TARGET
    one, same, other = (f"nnUNetTransferPlans_{start}-target__scratch" for start in ("all", "ct-alone", "t1-alone"))
    benchmark.check_equal(preprocessed, one, same)
    with pytest.raises(ValueError, match=r"all-target__scratch and .* differ in configurations"):
        benchmark.check_equal(preprocessed, one, other)


def test_a_folder_of_other_settings_is_refused(tmp_path):
    benchmark.claim(tmp_path / "work", {"scale": (1, 2)})
    benchmark.claim(tmp_path / "work", {"scale": (1, 2)})
    with pytest.raises(ValueError, match="other settings"):
        benchmark.claim(tmp_path / "work", {"scale": (1, 3)})
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(ValueError, match="holds no benchmark"):
        benchmark.claim(tmp_path / "other", {})


def test_steps_alternate():
    done = []
    times = domain_steps.paired_ms(lambda: done.append("a"), lambda: done.append("b"), 4)
    assert len(times) == 4
    assert "".join(done) in ("baabbaab", "abbaabba")


def test_batches_of_domains_are_equal_but_for_the_ids():
    scales = [[1, 1, 1], [0.5, 0.5, 0.5]]
    first, third = (domain_steps.batch_of(i, (26, 8, 8), scales) for i in (0, 2))
    assert first["data"].equal(third["data"])
    assert [tuple(target.shape) for target in first["target"]] == [(2, 1, 26, 8, 8), (2, 1, 13, 4, 4)]
    ids = first["target"][0].unique()
    assert ids.tolist() == list(range(domain_steps.LABELS + 1))
    assert third["target"][0].unique().tolist() == [0, *(ids[1:] + 2 * domain_steps.LABELS).tolist()]


def test_a_further_branch_costs_its_parameters_only(nnunet):
    steps = {
        arm: domain_steps.steps_of(nnunet, arm, *TIMED, "cpu") for arm in (domain_steps.STOCK, *domain_steps.BRANCHES)
    }
    held = {arm: one.bytes() for arm, one in steps.items()}
    few, many = (held[branches] for branches in domain_steps.BRANCHES)
    trainer = steps[8].trainer
    parameters = list(trainer.network.branches["domain3"].parameters())
    own = sum(4 * parameter.numel() for parameter in parameters)
    # nnU-Net gives the coarsest output weight 0, so its layer has no gradient and no momentum, in stock as well.
    moved = sum(4 * p.numel() for p in parameters if trainer.optimizer.state[p].get("momentum_buffer") is not None)
    growth = {key: many[key] - few[key] for key in few}
    assert growth == {"weights": 5 * own, "momentum": 5 * moved, "gradients": 0, "peak": 0}
    assert few["weights"] == held[domain_steps.STOCK]["weights"] + 2 * own
    assert 0 < moved < own


@pytest.mark.slow
def test_the_speed_of_steps_is_measured_with_real_trainers(tmp_path):
    words = [sys.executable, _FOLDER / "domains.py", tmp_path / "work", "--study", "speed", "--scale", "test"]
    done = subprocess.run(
        [*map(str, words), "--threads", "1"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    rows = rows_of(done.stdout, "16x16x16, 3 stages")
    timed = {(row[1], row[2]): [float(value) for value in row[3].split(" and ")] for row in rows if " and " in row[3]}
    assert len(timed) == len(domain_steps.PAIRS)
    assert all(value > 0 for pair in timed.values() for value in pair)
    memory = {row[1]: row[2:] for row in rows if " and " not in row[3]}
    assert memory["each further branch"][0] == memory["parameters of a branch"][0] != "0.000"
    assert memory["each further branch"][2:] == ["0.000", "0.000"]
