"""What the demo's report shows, and in which order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_pretrain.checkpoints.inspection import describe, read_card
from nnunet_pretrain.checkpoints.reading import read_checkpoint
from nnunet_pretrain.demo.commands import Workflow
from nnunet_pretrain.demo.pictures import colours, curves, overlay
from nnunet_pretrain.demo.report import dice_table
from nnunet_pretrain.demo.workspace import ARMS, PRETRAIN, PRETRAINING, TARGET, TARGET_LABELS, Workspace, target_dice
from nnunet_pretrain.files import read_json
from nnunet_pretrain.html_page import Report


def write_report(work: Workspace, workflow: Workflow, environment: Mapping[str, str], real: Path | None) -> Path:
    """Writes report.html from what the commands left behind.

    Args:
        work: The demo's folders.
        workflow: The commands that ran.
        environment: The variables they ran with.
        real: The real CT, or None.

    Returns:
        The page.
    """
    report = Report(work.root / "report.html", "nnunet-pretrain: the whole path on phantom CTs")
    report.note(
        "Phantoms are drawings, not patients, and this is one run with one seed: the page shows that the workflow "
        "works and what it produces. It is no evidence of clinical performance."
    )
    _transfer_section(report, work)
    _pretraining_section(report, work)
    if real is not None:
        _real_section(report, work, real)
    report.section("The commands", "Everything above came from these lines; nnU-Net's own commands are unmodified.")
    report.commands([*(f"export {name}={value}" for name, value in environment.items()), "", *workflow.commands])
    report.note(f"Time of all commands: {sum(workflow.seconds.values()) / 60:.1f} minutes.")
    report.write()
    return report.path


def _transfer_section(report: Report, work: Workspace) -> None:
    report.section(
        f"Transfer to {TARGET}",
        "Two labelled training cases, a label set of its own. Both arms share plans, steps and schedule; "
        "one starts from the pre-trained weights. Dice on four cases neither arm has seen, predicted with "
        "nnUNetv2_predict.",
    )
    arms = {arm: target_dice(work.predictions(arm)) for arm in ARMS}
    report.table(*dice_table(arms))
    loaded = read_json(work.fold(TARGET, ARMS["pre-trained"], "0") / "transfer_report.json")
    counts = ("loaded", "adapted", "initialised", "ignored")
    rows = [
        [part, *(str(found[c]) for c in counts), f"{found['share_of_target']:.1%}"]
        for part, found in loaded["parts"].items()
    ]
    report.table(["part", *(f"tensors {c}" for c in counts), "of the target's values"], rows)
    report.note("; ".join(f"{output}: {how}" for output, how in loaded["heads"].items()))
    logs = {arm: _log(work.fold(TARGET, run, "0")) for arm, run in ARMS.items()}
    report.figure("transfer_curves", curves(logs, "Training on the target"), "Learning curves of both arms.")
    labels = {i: name for i, name in enumerate(TARGET_LABELS, start=1)}
    for image in sorted((work.raw(TARGET) / "imagesTs").glob("*.nii.gz"))[:2]:
        case = image.name.replace("_0000.nii.gz", "")
        columns: dict[str, Path | None] = {"image": None, "reference": image.parents[1] / "labelsTs" / f"{case}.nii.gz"}
        columns |= {arm: work.predictions(arm) / f"{case}.nii.gz" for arm in ARMS}
        figure = overlay(image, columns, labels, colours(list(TARGET_LABELS)))
        report.figure(f"transfer_{case}", figure, f"{case}, never seen in training.")


def _pretraining_section(report: Report, work: Workspace) -> None:
    fold = work.fold(PRETRAINING, PRETRAIN, "all")
    report.section(
        "Pre-training on merged, partially labelled sources",
        "One case of each source was held out. The reference shows what the source annotates; the prediction shows "
        "every structure the network learned from all sources together. What a source does not annotate counts "
        "neither for nor against it.",
    )
    dataset_json = read_json(work.raw(PRETRAINING) / "dataset.json")
    summary = read_json(fold / "validation" / "summary.json")
    labels = _labels(dataset_json)
    palette = colours(list(labels.values()))
    for case in summary["metric_per_case"]:
        name = Path(case["prediction_file"]).name.removesuffix(".nii.gz")
        image = Path(dataset_json["dataset"][name]["images"][0])
        columns = {"image": None, f"annotated by {case['scheme']}": Path(case["reference_file"])}
        figure = overlay(image, {**columns, "prediction": Path(case["prediction_file"])}, labels, palette)
        report.figure(f"pretraining_{name}", figure, f"{name} ({case['scheme']}), held out.")
    report.figure("pretraining_curves", curves({"pre-training": _log(fold)}, "Pre-training"), "Learning curves.")
    report.table(
        ["label set", "Dice on the held-out cases"],
        [
            [group, "not present" if math.isnan(metrics["Dice"]) else f"{metrics['Dice']:.3f}"]
            for group, metrics in summary["mean"].items()
        ],
    )
    report.section("The checkpoint's card", "As `nnunet_pretrain inspect` prints it.")
    report.commands([describe(read_card(fold / "checkpoint_final.pth"))])


def _real_section(report: Report, work: Workspace, real: Path) -> None:
    report.section(
        "The real CT",
        "It was one of the training cases, the only real one, so the picture shows that the path carries real data. "
        "It says nothing about unseen patients.",
    )
    dataset_json = read_json(work.raw(PRETRAINING) / "dataset.json")
    labels = _labels(dataset_json)
    case = next(c for c, entry in dataset_json["dataset"].items() if Path(entry["images"][0]).samefile(real))
    columns = {
        "image": None,
        "reference": work.raw(PRETRAINING) / dataset_json["dataset"][case]["label"],
        "prediction of the pre-trained network": work.predictions("real") / "real.nii.gz",
    }
    figure = overlay(real, columns, labels, colours(list(labels.values())))
    report.figure("real_ct", figure, f"{case}, from {real}.")


def _labels(dataset_json: Mapping[str, Any]) -> dict[int, str]:
    """Returns id to name of the merged dataset, without background."""
    return {i: name for name, i in dataset_json["labels"].items() if i}


def _log(fold: Path) -> dict[str, Any]:
    """Reads nnU-Net's log from a checkpoint."""
    logging = read_checkpoint(fold / "checkpoint_final.pth")["logging"]
    return {key: [float(value) for value in logging[key]] for key in ("train_losses", "val_losses", "mean_fg_dice")}
