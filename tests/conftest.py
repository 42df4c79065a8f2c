"""Shared fixtures: small sources on disk, and one real pre-training that several tests look at."""

import signal
import sys
from types import SimpleNamespace

import pytest
import small_machine  # noqa: F401 - before whatever imports torch
import torch
from nnunet_runs import (
    DOMAINS,
    SMALL,
    SOURCES,
    SPAWNED_TRAINING,
    TARGET_LABELS,
    nnunet_folders,
    run,
    script,
    shorten,
    variables_set,
)

from nnunet_pretrain.conversion import find_source, merge
from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.folders import TRAINER_VARIABLE, leaf
from nnunet_pretrain.phantom.datasets import write_phantom_source, write_phantom_target
from nnunet_pretrain.phantom.domains import write_phantom_domain

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in a shell's background, and children inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def nnunet(tmp_path, monkeypatch):
    """Empty nnU-Net folders; the environment points to them."""
    for variable, value in nnunet_folders(tmp_path).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv(TRAINER_VARIABLE, raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def one_thread():
    """Small networks and images: threads would wait for each other, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """Two coarse phantoms per source, as that source lies on disk; tests copy before they change anything."""
    root = tmp_path_factory.mktemp("sources")
    for position, name in enumerate(SOURCES):
        orientations = ("IPL",) if name == "KiTS23" else ("RAS", "LPS")
        write_phantom_source(
            find_source(name), root / name, range(10 * position, 10 * position + 2), orientations, **SMALL
        )
    return root


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory, sources):
    """A real, very short pre-training under start method spawn, and a planned and preprocessed target."""
    root = tmp_path_factory.mktemp("pretrained")
    environment = nnunet_folders(root)
    with variables_set(environment):
        merge(900, "Merged", [(name, sources / name) for name in SOURCES])
        write_phantom_target(root / "nnUNet_raw/Dataset901_Target", TARGET_LABELS, [80], [81], [82], **SMALL)
    logs = {
        "plan_and_preprocess": run(
            [script("nnUNetv2_plan_and_preprocess"), "-d", "900", "--verify_dataset_integrity", "--no_pp", "-np", "2"],
            environment,
        )
    }
    run([script("nnunet_pretrain"), "plan", "-d", "900", "--preset", "tiny"], environment)
    shorten(root / "nnUNet_preprocessed/Dataset900_Merged/nnUNetPretrainPlans.json")
    preprocess = [script("nnUNetv2_preprocess"), "-c", "3d_fullres", "-np", "2"]
    run([*preprocess, "-d", "900", "-plans_name", "nnUNetPretrainPlans"], environment)
    train = [sys.executable, "-c", SPAWNED_TRAINING, "900", "3d_fullres", "all", "-device", "cpu"]
    logs["train"] = run([*train, "-tr", "nnUNetTrainerPretrain", "-p", "nnUNetPretrainPlans"], environment)
    model = root / "nnUNet_results/Dataset900_Merged/nnUNetTrainerPretrain__nnUNetPretrainPlans__3d_fullres"
    checkpoint = model / "fold_all/checkpoint_final.pth"
    run([script("nnunet_pretrain"), "plan_transfer", "-d", "901", "-c", checkpoint], environment)
    for plans in ("nnUNetTransferPlans_Merged", "nnUNetTransferPlans_Merged__scratch"):
        shorten(root / f"nnUNet_preprocessed/Dataset901_Target/{plans}.json")
    run([*preprocess, "-d", "901", "-plans_name", "nnUNetTransferPlans_Merged"], environment)
    return SimpleNamespace(root=root, environment=environment, logs=logs, model=model, checkpoint=checkpoint)


@pytest.fixture(scope="session")
def domains(tmp_path_factory):
    """Three phantom domains of other contrasts, labels and spacings, and a very short training of one network on them.

    All is done with a user's commands, nnU-Net's under start method spawn.
    """
    root = tmp_path_factory.mktemp("domains")
    environment = nnunet_folders(root)
    for position, (name, (contrast, labels, spacing)) in enumerate(DOMAINS.items()):
        seeds = range(10 * position, 10 * position + 3)
        write_phantom_domain(root / "nnUNet_raw" / name, contrast, labels, seeds, spacing_mm=spacing)
    recipe = read_json(leaf("plans") / "tiny.json")
    recipe["training"]["mirror_axes"], recipe["domains"] = [0], {"clip_percentiles": [0.5, 99.5]}
    write_json(root / "mine.json", recipe)
    ours, preset = script("nnunet_pretrain"), ["--preset", root / "mine.json"]
    members = ["--members", "3", "Dataset007_MR", "9"]
    logs = {"plan": run([ours, "plan_domains", "-d", "910", "-n", "Many", *members, *preset], environment)}
    plans = root / "nnUNet_preprocessed/Dataset910_Many/nnUNetDomainPlans.json"
    shorten(plans, num_iterations_per_epoch=9, num_val_iterations_per_epoch=4, warmup_epochs=0, val_share=0.4)
    run([ours, "preprocess", "-d", "910", "-p", "nnUNetDomainPlans"], environment)
    train = [sys.executable, "-c", SPAWNED_TRAINING, "910", "3d_fullres", "all", "-device", "cpu"]
    logs["train"] = run([*train, "-tr", "nnUNetTrainerDomains", "-p", "nnUNetDomainPlans"], environment)
    model = root / "nnUNet_results/Dataset910_Many/nnUNetTrainerDomains__nnUNetDomainPlans__3d_fullres"
    checkpoint = model / "fold_all/checkpoint_final.pth"
    return SimpleNamespace(
        root=root, environment=environment, logs=logs, model=model, checkpoint=checkpoint, plans=plans
    )
