"""Verbs around checkpoints and targets."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_pretrain.cli.options import (
    add_checkpoint,
    add_processes,
    add_transfer,
    print_planned,
    transfer_options,
)


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this module's verbs to the parser."""
    _add_plan_transfer(verbs.add_parser("plan_transfer", help="plan a target from a checkpoint, and its control"))

    _add_study(verbs.add_parser("study", help="compare pre-trained with from scratch at several numbers of labels"))
    _add_export(verbs.add_parser("export", help="write a checkpoint as safetensors, stock nnU-Net model, or for nnssl"))
    verb = verbs.add_parser("inspect", help="print what a checkpoint knows about itself")
    verb.add_argument("checkpoint", type=Path)
    verb.add_argument("--json", action="store_true", help="print the card as JSON")
    verb.set_defaults(run=_inspect)


def _add_plan_transfer(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("-d", required=True, metavar="TARGET", help="id or name of the target dataset")
    verb.add_argument("-n", metavar="NAME", help="plans become nnUNetTransferPlans_NAME (default: the pre-training's)")
    add_transfer(verb)
    verb.add_argument("--encoder-only", action="store_true", help="leave decoder and heads to the seed")
    verb.add_argument(
        "--head",
        action="append",
        default=[],
        metavar="OUTPUT=A+B",
        help="start an output of the target from these pre-trained structures; OUTPUT= for none; repeat for each",
    )
    verb.add_argument("-gpu_memory_target", type=float, metavar="GB", help="fit the batch to this memory")
    verb.add_argument(
        "--write-weights",
        type=Path,
        metavar="OUT.pth",
        help="also write the transferred network, for stock nnU-Net's -pretrained_weights",
    )
    verb.set_defaults(run=_plan_transfer)


def _add_study(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("-d", required=True, metavar="TARGET", help="id or name of the target dataset")
    add_checkpoint(verb)
    verb.add_argument(
        "--task", choices=("segmentation", "classification"), default="segmentation", help="default: %(default)s"
    )
    verb.add_argument("--crop-mm", type=float, metavar="MM", help="edge of the patch around a lesion to classify")
    verb.add_argument("--fractions", nargs="+", type=float, default=[0.05, 0.1, 0.25, 0.5, 1.0], metavar="F")
    verb.add_argument("--seeds", type=int, default=3, help="repetitions (default: %(default)s)")
    verb.add_argument(
        "--arms",
        nargs="+",
        default=["scratch", "pretrained"],
        metavar="ARM",
        help="built-in arms, NAME=FILE.json with settings that differ, or NAME=CHECKPOINT to start from another one "
        "(default: scratch pretrained)",
    )
    verb.add_argument("-n", default="study", metavar="NAME", help="name of the study (default: %(default)s)")
    verb.add_argument("--preset", help="a recipe, or your own .json (default: the pre-training's)")
    verb.add_argument("--test", default="0", help="fold whose validation cases are held out, or imagesTs (default: 0)")
    verb.add_argument("--exclude", nargs="+", default=[], metavar="CASE", help="cases never to test on")
    verb.add_argument("--nsd", type=float, default=1.0, metavar="MM", help="tolerance of the surface Dice (default: 1)")
    verb.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: %(default)s)")
    verb.add_argument("-device", choices=("cuda", "cpu", "mps"), default="cuda", help="default: %(default)s")
    verb.add_argument("-o", type=Path, metavar="DIR", help="results (default: nnUNet_results/TARGET/study_NAME)")
    add_processes(verb)
    verb.set_defaults(run=_study)


def _study(arguments: argparse.Namespace) -> None:
    from nnunet_pretrain.study import StudyOptions, run_study

    folder = run_study(
        StudyOptions(
            dataset=arguments.d,
            checkpoint=arguments.c,
            fractions=tuple(arguments.fractions),
            seeds=arguments.seeds,
            arms=tuple(arguments.arms),
            name=arguments.n,
            preset=arguments.preset,
            test=arguments.test,
            exclude=tuple(arguments.exclude),
            jobs=arguments.jobs,
            device=arguments.device,
            out=arguments.o,
            num_processes=arguments.np,
            nsd_mm=arguments.nsd,
            task=arguments.task,
            branch=arguments.branch,
            crop_mm=arguments.crop_mm,
        ),
        report=print,
    )
    print(f"results in {folder}: table.md, study.png, results.csv, results.json")


def _add_export(verb: argparse.ArgumentParser) -> None:
    add_checkpoint(verb)
    verb.add_argument(
        "-o", required=True, metavar="OUT", type=Path, help=".safetensors, .zip, a folder, or .pth with --nnssl"
    )
    verb.add_argument("--encoder-only", action="store_true", help="leave out decoder and heads")
    verb.add_argument(
        "--trainer", default="nnUNetTrainer", metavar="NAME", help="trainer the model names (default: %(default)s)"
    )
    verb.add_argument("--nnssl", action="store_true", help="write what nnU-Net's nnssl fine-tuning starts from")
    verb.add_argument("--overwrite", action="store_true", help="replace what is there")
    verb.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> None:
    from nnunet_pretrain.transfer.export import export

    lines = export(
        arguments.c,
        arguments.o,
        branch=arguments.branch,
        encoder_only=arguments.encoder_only,
        trainer=arguments.trainer,
        form="nnssl" if arguments.nnssl else None,
        overwrite=arguments.overwrite,
    )
    print("\n".join(lines))


def _plan_transfer(arguments: argparse.Namespace) -> None:
    from nnunet_pretrain.transfer.plan_transfer import plan_transfer

    options = transfer_options(
        arguments,
        parts="encoder" if arguments.encoder_only else "all",
        heads=_heads(arguments.head),
        gpu_memory_gb=arguments.gpu_memory_target,
        weights=arguments.write_weights,
    )
    planned = plan_transfer(options, report=print)
    print_planned(planned, arguments.d, "nnUNetTrainerTransfer")
    if arguments.write_weights is not None:
        print(
            f"or with stock nnU-Net: nnUNetv2_train {arguments.d} {planned.configuration} 0 -p {planned.scratch.stem} "
            f"-pretrained_weights {arguments.write_weights}"
        )


def _heads(texts: list[str]) -> dict[str, tuple[str, ...]]:
    heads = {}
    for text in texts:
        name, equals, rows = text.partition("=")
        if not equals:
            raise ValueError(f"--head takes OUTPUT=STRUCTURE+STRUCTURE, got '{text}'")
        heads[name] = tuple(row for row in rows.split("+") if row)
    return heads


def _inspect(arguments: argparse.Namespace) -> None:
    import json

    from nnunet_pretrain.checkpoints.inspection import describe, read_card

    card = read_card(arguments.checkpoint)
    print(json.dumps(card.as_dict(), indent=2) if arguments.json else describe(card))
