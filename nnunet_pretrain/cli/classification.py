"""Verbs that classify images and lesions."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_pretrain.cli.options import add_transfer, print_planned, transfer_options


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this module's verbs to the parser."""
    _add_plan(verbs.add_parser("plan_classification", help="plan the classification of images or lesions"))
    _add_classify(verbs.add_parser("classify", help="write probabilities of classes for new images as CSV"))


def _add_plan(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("-d", required=True, metavar="TARGET", help="id or name of the target, with a classification.csv")
    verb.add_argument("-n", metavar="NAME", help="plans become nnUNetTransferPlans_NAME (default: ..._Classification)")
    add_transfer(verb)
    verb.add_argument("--crop-mm", type=float, metavar="MM", help="edge of the patch around a lesion")
    verb.add_argument("--batch-size", type=int, metavar="N", help="examples per step (default: what fits, at most 32)")
    verb.set_defaults(run=_plan)


def _add_classify(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("-i", required=True, type=Path, metavar="IMAGES", help="folder of images, named as in imagesTr")
    verb.add_argument("-o", required=True, type=Path, metavar="OUT.csv", help="table to write")
    verb.add_argument("-m", required=True, type=Path, metavar="MODEL", help="folder of a trained model")
    verb.add_argument("-f", nargs="+", default=[], metavar="FOLD", help="folds to average (default: all there are)")
    verb.add_argument("-chk", default="checkpoint_final.pth", metavar="NAME", help="default: %(default)s")
    verb.add_argument("--lesions", type=Path, metavar="FOLDER", help="label maps CASE.nii.gz, for models of lesions")
    verb.add_argument("-device", choices=("cuda", "cpu", "mps"), default="cuda", help="default: %(default)s")
    verb.set_defaults(run=_classify)


def _plan(arguments: argparse.Namespace) -> None:
    from nnunet_pretrain.classification.plan_classification import TRAINER, plan_classification

    options = transfer_options(arguments)
    planned = plan_classification(options, arguments.crop_mm, arguments.batch_size, report=print)
    print_planned(planned, arguments.d, TRAINER)


def _classify(arguments: argparse.Namespace) -> None:
    from nnunet_pretrain.classification.classify import classify

    rows = classify(
        arguments.i,
        arguments.o,
        arguments.m,
        folds=arguments.f,
        checkpoint=arguments.chk,
        lesions=arguments.lesions,
        device=arguments.device,
    )
    print(f"{rows} rows written to {arguments.o}")
