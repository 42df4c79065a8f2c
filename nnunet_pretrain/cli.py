"""The command line: `nnunet_pretrain <verb>`. Each verb only parses and calls a function of the package.

Imports happen inside the verbs, so that help is shown without loading torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunet_pretrain import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        0 on success, 2 after a user error (one line on standard error), 130 after an interruption.
    """
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, FileNotFoundError) as error:
        print(f"nnunet_pretrain {arguments.verb}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"nnunet_pretrain {arguments.verb}: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnunet_pretrain",
        description="Supervised pre-training on merged, partially labelled CT datasets for nnU-Net v2.",
    )
    parser.add_argument("--version", action="version", version=f"nnunet-pretrain {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="<verb>", required=True)

    verb = verbs.add_parser("sources", help="list the known sources: structures, cases, licence")
    verb.add_argument("name", nargs="?", help="show one source, or one source file, in full")
    verb.set_defaults(run=_sources)

    verb = verbs.add_parser("merge", help="make one nnU-Net raw dataset of several sources")
    verb.add_argument("-d", type=int, required=True, metavar="ID", help="dataset id, 1 to 999")
    verb.add_argument("-n", required=True, metavar="NAME", help="dataset name")
    verb.add_argument(
        "--source", action="append", default=[], metavar="NAME=PATH", help="a source and its folder; repeat for each"
    )
    verb.add_argument("--overwrite", action="store_true", help="replace an existing dataset of that id and name")
    _add_processes(verb)
    verb.set_defaults(run=_merge)

    verb = verbs.add_parser("plan", help="fingerprint and plan a merged dataset: writes nnUNetPretrainPlans")
    verb.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name")
    verb.add_argument("--preset", default="default", help="a recipe of plans/ (default: %(default)s)")
    _add_processes(verb)
    verb.set_defaults(run=_plan)

    verb = verbs.add_parser("env", help='print the export line for eval "$(nnunet_pretrain env)"')
    verb.set_defaults(run=_env)

    verb = verbs.add_parser("plan_transfer", help="plan a target from a checkpoint: writes nnUNetTransferPlans")
    verb.add_argument("-d", required=True, metavar="TARGET", help="id or name of the target dataset")
    verb.add_argument("-c", required=True, metavar="CHECKPOINT", type=Path, help="pre-trained checkpoint (.pth)")
    verb.add_argument("--preset", default=None, help="a recipe of plans/ (default: the one of the pre-training)")
    _add_processes(verb)
    verb.set_defaults(run=_plan_transfer)

    verb = verbs.add_parser("inspect", help="print what a checkpoint knows about itself")
    verb.add_argument("checkpoint", type=Path)
    verb.add_argument("--json", action="store_true", help="print the card as JSON")
    verb.set_defaults(run=_inspect)

    verb = verbs.add_parser("demo", help="run the whole path on phantom CTs and write a report")
    verb.add_argument("--out", type=Path, default=Path("nnunet_pretrain_demo"), help="folder (default: %(default)s)")
    verb.add_argument("--cases", type=int, default=6, help="phantom cases per source (default: %(default)s)")
    verb.add_argument(
        "--data", type=Path, default=None, help="a real CT with TotalSegmentator labels, as further source"
    )
    verb.add_argument("-device", choices=("cpu", "cuda", "mps"), default=None, help="default: cuda if there is one")
    verb.set_defaults(run=_demo)
    return parser


def _add_processes(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("-np", type=int, default=2, metavar="N", help="worker processes (default: %(default)s)")


def _sources(arguments: argparse.Namespace) -> None:
    from nnunet_pretrain.conversion.listing import describe_source, list_sources
    from nnunet_pretrain.conversion.source import find_source, known_sources

    if arguments.name:
        print(describe_source(find_source(arguments.name)))
    else:
        print(list_sources(known_sources().values()))


def _merge(arguments: argparse.Namespace) -> None:
    from nnunet_pretrain.conversion.merge import merge

    pairs = []
    for text in arguments.source:
        name, separator, path = text.partition("=")
        if not (name and separator and path):
            raise ValueError(f"--source must be NAME=PATH, got '{text}'")
        pairs.append((name, Path(path)))
    merge(arguments.d, arguments.n, pairs, num_processes=arguments.np, overwrite=arguments.overwrite, report=print)
    print(f"next: nnunet_pretrain plan -d {arguments.d}")


def _plan(arguments: argparse.Namespace) -> None:
    from nnunet_pretrain.files import read_json
    from nnunet_pretrain.planning import PRETRAIN_PLANS, plan

    path = plan(arguments.d, arguments.preset, arguments.np)
    print(f"plans written to {path}, with preset {arguments.preset}")
    for name, chosen in read_json(path)["configurations"].items():
        if "patch_size" in chosen:
            spacing = [round(mm, 3) for mm in chosen["spacing"]]
            print(f"  {name}: patch {chosen['patch_size']}, batch {chosen['batch_size']}, spacing {spacing} mm")
    print(
        f"next: nnUNetv2_preprocess -d {arguments.d} -plans_name {PRETRAIN_PLANS} -c 3d_fullres\n"
        f"      nnUNetv2_train {arguments.d} 3d_fullres all -tr nnUNetTrainerPretrain -p {PRETRAIN_PLANS}"
    )


def _env(arguments: argparse.Namespace) -> None:
    from nnunet_pretrain.folders import export_line

    print(export_line())


def _plan_transfer(arguments: argparse.Namespace) -> None:
    from nnunet_pretrain.planning import SCRATCH_PLANS, TRANSFER_PLANS
    from nnunet_pretrain.transfer.plan_transfer import plan_transfer

    transfer, scratch, card = plan_transfer(arguments.d, arguments.c, arguments.preset, arguments.np, print)
    print(f"plans written to {transfer}\ncontrol from scratch: {scratch}")
    print(
        f"next: nnUNetv2_preprocess -d {arguments.d} -plans_name {TRANSFER_PLANS} -c {card.configuration}\n"
        f"      nnUNetv2_train {arguments.d} {card.configuration} 0 -tr nnUNetTrainerTransfer -p {TRANSFER_PLANS}\n"
        f"      (and with -p {SCRATCH_PLANS} for the control)"
    )


def _inspect(arguments: argparse.Namespace) -> None:
    import json

    from nnunet_pretrain.checkpoints.card import describe, read_card

    card = read_card(arguments.checkpoint)
    print(json.dumps(card.as_dict(), indent=2) if arguments.json else describe(card))


def _demo(arguments: argparse.Namespace) -> None:
    from nnunet_pretrain.demo.run import run_demo

    run_demo(arguments.out, cases=arguments.cases, data=arguments.data, device=arguments.device)
