"""The verb that shows the whole path."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this module's verbs to the parser."""
    verb = verbs.add_parser("demo", help="run the whole path on phantom CTs and write a report")
    verb.add_argument("--out", type=Path, default=Path("nnunet_pretrain_demo"), help="folder (default: %(default)s)")
    verb.add_argument("--cases", type=int, default=6, help="phantom cases per source (default: %(default)s)")
    verb.add_argument(
        "--data", type=Path, default=None, help="a real CT with TotalSegmentator labels, as further source"
    )
    verb.add_argument("-device", choices=("cpu", "cuda", "mps"), default=None, help="default: cuda if there is one")
    verb.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> None:
    from nnunet_pretrain.demo.run import run_demo

    run_demo(arguments.out, cases=arguments.cases, data=arguments.data, device=arguments.device)
