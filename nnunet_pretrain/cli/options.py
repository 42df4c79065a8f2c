"""Options that several verbs share."""

from __future__ import annotations

import argparse


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
