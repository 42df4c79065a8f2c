"""Options that several verbs share, and what is made of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # to read the options of one verb, the others' code is not loaded
    from nnunet_pretrain.transfer.plan_transfer import PlannedTransfer, PlanOptions


def add_checkpoint(verb: argparse.ArgumentParser) -> None:
    """Adds -c and --branch, for verbs that start from a checkpoint."""
    verb.add_argument("-c", required=True, metavar="CHECKPOINT", type=Path, help="pre-trained checkpoint of any origin")
    verb.add_argument(
        "--branch", metavar="NAME", help="domain whose branch to take: its name, or the number of its dataset"
    )


def add_transfer(verb: argparse.ArgumentParser) -> None:
    """Adds what every verb takes that plans a target from a checkpoint, but for the target and the plans' name."""
    add_checkpoint(verb)
    verb.add_argument(
        "--keep",
        choices=("pretrained", "target"),
        help="whose spacing, patch and normalisation to take (default: pretrained; target after natural images, and "
        "with the encoder alone of many domains)",
    )
    verb.add_argument(
        "--target-plans",
        metavar="PLANS",
        help="take the target's own plan from a .json file, its nnUNetPlans (DATASET), or DATASET/PLANS",
    )
    verb.add_argument("--preset", default=None, help="a recipe, or your own .json (default: the pre-training's)")
    verb.add_argument("--allow-partial", action="store_true", help="go on if a part of the network gets little")
    verb.add_argument("--allow-width", action="store_true", help="let layers of another width share their channels")
    verb.add_argument("--exclude-leaked", action="store_true", help="validate on no case of the pre-training")
    add_processes(verb)


def transfer_options(arguments: argparse.Namespace, **further: Any) -> PlanOptions:
    """Returns what the user asked for with the options of `add_transfer`, -d and -n.

    Args:
        arguments: The parsed arguments.
        **further: Other fields of `PlanOptions`.
    """
    from nnunet_pretrain.transfer.plan_transfer import PlanOptions

    return PlanOptions(
        dataset=arguments.d,
        checkpoint=arguments.c,
        name=arguments.n,
        keep=arguments.keep,
        preset=arguments.preset,
        branch=arguments.branch,
        allow_partial=arguments.allow_partial,
        allow_width=arguments.allow_width,
        exclude_leaked=arguments.exclude_leaked,
        target_plans=arguments.target_plans,
        num_processes=arguments.np,
        **further,
    )


def print_planned(planned: PlannedTransfer, dataset: str, trainer: str) -> None:
    """Prints where the plans of a transfer are, and the commands that follow."""
    plans, scratch, configuration = planned.transfer.stem, planned.scratch.stem, planned.configuration
    print(f"plans written to {planned.transfer}\ncontrol from scratch: {planned.scratch}")
    print(
        f"next: nnunet_pretrain preprocess -d {dataset} -p {plans} -c {configuration}\n"
        f"      nnUNetv2_train {dataset} {configuration} 0 -tr {trainer} -p {plans}\n"
        f"      (and with -p {scratch} for the control)"
    )


def add_recipe(verb: argparse.ArgumentParser) -> None:
    """Adds --preset and --resampling, for verbs that plan a pre-training."""
    verb.add_argument(
        "--preset", default="default", help="a recipe of plans/, or the path of your own .json (default: %(default)s)"
    )
    verb.add_argument(
        "--resampling",
        choices=("nnunet", "torch"),
        help="resample images and logits with nnU-Net's default, or its faster torch function (default: the preset's)",
    )


def add_processes(verb: argparse.ArgumentParser) -> None:
    """Adds -np."""
    verb.add_argument("-np", type=int, default=2, metavar="N", help="worker processes (default: %(default)s)")
