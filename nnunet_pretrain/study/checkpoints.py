"""Arms that start from another checkpoint than the study's, such as the controls of a pre-training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nnunet_pretrain.checkpoints.branches import branch_names, chosen_branch, ordinary
from nnunet_pretrain.checkpoints.classifiers import is_classifier
from nnunet_pretrain.checkpoints.natural_images import natural_images_of
from nnunet_pretrain.checkpoints.pretrained import read_pretrained
from nnunet_pretrain.files import read_json, sha256_of
from nnunet_pretrain.folders import nnunet_folder
from nnunet_pretrain.planning.settings import PretrainSettings
from nnunet_pretrain.study.arms import Arm, Keep, always, settings_of
from nnunet_pretrain.study.bases import Base, Report
from nnunet_pretrain.study.design import StudyOptions

Checkpoints = Mapping[str, dict[str, Any]]


def read_checkpoints(arms: Sequence[Arm]) -> dict[str, dict[str, Any]]:
    """Reads the checkpoints of arms that have one of their own; their tensors stay on the disk.

    Returns:
        Name of the arm to checkpoint.

    Raises:
        ValueError: A file is unreadable, unsafe, or of an unknown format.
    """
    return {arm.name: read_pretrained(arm.checkpoint) for arm in arms if arm.checkpoint is not None}


def check_stock_weights(options: StudyOptions, arms: Sequence[Arm]) -> None:
    """Refuses to let nnU-Net load the weights of natural images, which it cannot fit to the target.

    Raises:
        ValueError: An arm asks for that.
    """
    stock = [arm.name for arm in arms if arm.stock_weights]
    if stock and natural_images_of(read_pretrained(options.checkpoint.expanduser())) is not None:
        raise ValueError(
            f"arm '{stock[0]}': nnU-Net's -pretrained_weights demands every tensor in the target's shape, and the "
            f"checkpoint's decoder has no strides along depth; leave the arm out"
        )


def with_checkpoints(
    arms: Sequence[Arm],
    own: Checkpoints,
    bases: Mapping[Keep, Base],
    options: StudyOptions,
    dataset: str,
    report: Report,
) -> list[Arm]:
    """Returns arms of which those with a checkpoint start from it, once it is sure that its network fits.

    Args:
        arms: The arms.
        own: Name of an arm to its checkpoint, whole.
        bases: The plans they share with the pretrained arm.
        options: The study; its branch is taken from checkpoints of many branches.
        dataset: Name of the target.
        report: Called with lines for the user.

    Raises:
        ValueError: There is no such branch, a network is of another kind, or too little of it would be loaded.
    """
    return [
        _started(arm, own[arm.name], bases[arm.keep], dataset, options.branch, report) if arm.name in own else arm
        for arm in arms
    ]


def _started(
    arm: Arm, checkpoint: Mapping[str, Any], base: Base, dataset: str, branch: str | None, report: Report
) -> Arm:
    """Returns an arm that starts from its checkpoint."""
    from nnunet_pretrain.transfer.plan_transfer import try_transfer

    plans = base.plans_of(arm, dataset)
    dataset_json = read_json(nnunet_folder("nnUNet_preprocessed") / dataset / "dataset.json")
    try:
        transfer = _start(arm, checkpoint, plans, dataset_json, branch)
        made = replace(arm, changes=always({"transfer": transfer}))
        content = ordinary(checkpoint, transfer["branch"])
        found = try_transfer(content, plans, base.configuration, dataset_json, settings_of(made, plans))
    except ValueError as error:
        raise ValueError(f"arm '{arm.name}': {error}") from error
    taken = "the encoder" if transfer["parts"] == "encoder" else "encoder and decoder"
    report(
        f"arm '{arm.name}' starts from {transfer['checkpoint']}: {taken}, {found.share('encoder'):.1%} of the former"
    )
    return made


def _start(
    arm: Arm, checkpoint: Mapping[str, Any], plans: Mapping[str, Any], dataset_json: Mapping[str, Any], name: str | None
) -> dict[str, Any]:
    """Returns how an arm's transfer differs from that of the pretrained arm; no more parts are taken than there."""
    from nnunet_pretrain.transfer.heads import match_heads, outputs_of

    planned = PretrainSettings.from_plans(plans).transfer
    assert planned is not None
    assert arm.checkpoint is not None
    branches = branch_names(checkpoint)
    branch = chosen_branch(checkpoint, name) if branches and name is not None else None
    encoder = planned.parts == "encoder" or is_classifier(checkpoint) or (bool(branches) and branch is None)
    old = ordinary(checkpoint, branch)["init_args"]["dataset_json"]
    return {
        "checkpoint": str(arm.checkpoint),
        "sha256": sha256_of(arm.checkpoint),
        "branch": branch,
        "parts": "encoder" if encoder else "all",
        "heads": {} if encoder else match_heads(outputs_of(old), outputs_of(dataset_json)),
    }


def leaked_in(own: Checkpoints, dataset: str, num_processes: int, report: Report) -> set[str]:
    """Returns the cases of the target that were in the pre-training of any arm's own checkpoint.

    Args:
        own: Name of an arm to its checkpoint.
        dataset: Name of the target.
        num_processes: Worker processes that read the target's images.
        report: Called with what is known of each.
    """
    from nnunet_pretrain.transfer.leakage import find_leaked

    cases: set[str] = set()
    for name, checkpoint in own.items():
        leakage = find_leaked(dataset, checkpoint, num_processes)
        report(f"arm '{name}': {leakage.lines()[0]}")
        cases |= {entry.case for entry in leakage.cases}
    return cases
