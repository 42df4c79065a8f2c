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
        0 on success, 1 if cases were quarantined, 2 after a user error (one line on standard error), 130 after an
        interruption.
    """
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments) or 0)
    except (ValueError, FileNotFoundError) as error:
        print(f"nnunet_pretrain {arguments.verb}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"nnunet_pretrain {arguments.verb}: interrupted", file=sys.stderr)
        return 130


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
        "--source",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a source and its folder, or a dataset in nnUNet_raw (Dataset027_X); repeat for each",
    )
    verb.add_argument(
        "--drop-duplicates", action="store_true", help="of equal images keep only that of the --source named first"
    )
    _add_conversion(verb)
    verb.set_defaults(run=_merge)

    verb = verbs.add_parser("convert", help="make one stand-alone nnU-Net raw dataset of one source")
    verb.add_argument("source", metavar="NAME", help="a source, a source file, or a dataset in nnUNet_raw")
    verb.add_argument("path", nargs="?", type=Path, metavar="PATH", help="its folder; not needed for a dataset")
    verb.add_argument("-d", type=int, required=True, metavar="ID", help="dataset id, 1 to 999")
    verb.add_argument("-n", metavar="DATASET_NAME", help="dataset name (default: the source's)")
    _add_conversion(verb)
    verb.set_defaults(run=_convert, drop_duplicates=False)

    verb = verbs.add_parser("new_source", help="write a commented source file from an nnU-Net dataset.json")
    verb.add_argument("dataset", metavar="DATASET", help="id or name in nnUNet_raw, or the path of a dataset.json")
    verb.add_argument("-o", type=Path, metavar="FILE", help="file to write (default: DATASET.yaml)")
    verb.set_defaults(run=_new_source)

    verb = verbs.add_parser("duplicates", help="find images that occur twice, in one dataset or in two")
    verb.add_argument("-d", action="append", required=True, metavar="DATASET", help="id or name; once or twice")
    verb.add_argument("--json", action="store_true", help="print the pairs as JSON")
    _add_processes(verb)
    verb.set_defaults(run=_duplicates)

    verb = verbs.add_parser("plan", help="fingerprint and plan a merged dataset: writes nnUNetPretrainPlans")
    verb.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name")
    verb.add_argument(
        "--preset", default="default", help="a recipe of plans/, or the path of your own .json (default: %(default)s)"
    )
    verb.add_argument(
        "--resampling",
        choices=("nnunet", "torch"),
        help="resample images and logits with nnU-Net's default, or its faster torch function (default: the preset's)",
    )
    _add_processes(verb)
    verb.set_defaults(run=_plan)

    verb = verbs.add_parser("preprocess", help="what nnUNetv2_preprocess does, faster, and resumable")
    verb.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name")
    verb.add_argument("-p", default="nnUNetPretrainPlans", metavar="PLANS", help="plans (default: %(default)s)")
    verb.add_argument("-c", nargs="+", default=["3d_fullres"], metavar="CONFIG", help="default: 3d_fullres")
    verb.add_argument("--device", choices=("cuda", "cpu"), help="where torch resamples (default: cuda if there is one)")
    verb.add_argument("--overwrite", action="store_true", help="make all cases again")
    _add_processes(verb)
    verb.set_defaults(run=_preprocess)

    verb = verbs.add_parser("env", help='print the export line for eval "$(nnunet_pretrain env)"')
    verb.set_defaults(run=_env)

    verb = verbs.add_parser("plan_transfer", help="plan a target from a checkpoint: writes nnUNetTransferPlans")
    verb.add_argument("-d", required=True, metavar="TARGET", help="id or name of the target dataset")
    verb.add_argument("-c", required=True, metavar="CHECKPOINT", type=Path, help="pre-trained checkpoint (.pth)")
    verb.add_argument("--preset", default=None, help="a recipe, or your own .json (default: the pre-training's)")
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


def _add_conversion(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--structures", metavar="A,B,...", help="label space: these structures (default: all 31)")
    verb.add_argument("--append", metavar="A,B,...", help="further structures, or a source's name for all of its own")
    verb.add_argument("--label-space", type=Path, metavar="FILE", help="label space from a JSON file")
    verb.add_argument("--split-paired", action="store_true", help="split unsplit kidneys, lungs, ... where it is safe")
    verb.add_argument("--overwrite", action="store_true", help="replace an existing dataset of that id and name")
    verb.add_argument("--resume", action="store_true", help="redo only what is missing or changed")
    verb.add_argument("--strict", action="store_true", help="stop at the first case that cannot be converted")
    verb.add_argument("--dask", metavar="ADDRESS", help="convert on an existing Dask cluster, such as tcp://host:8786")
    _add_processes(verb)


def _add_processes(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("-np", type=int, default=2, metavar="N", help="worker processes (default: %(default)s)")


def _sources(arguments: argparse.Namespace) -> None:
    from nnunet_pretrain.conversion.catalogue import find_source, known_sources
    from nnunet_pretrain.conversion.listing import describe_source, list_sources

    if arguments.name:
        print(describe_source(find_source(arguments.name)))
    else:
        print(list_sources(known_sources().values()))


def _merge(arguments: argparse.Namespace) -> int:
    pairs: list[tuple[str, Path | None]] = []
    for text in arguments.source:
        name, _, path = text.partition("=")
        pairs.append((name, Path(path) if path else None))
    return _run_merge(arguments, arguments.n, pairs)


def _convert(arguments: argparse.Namespace) -> int:
    name = arguments.n or "".join(c if c.isalnum() else "_" for c in Path(arguments.source).stem)
    return _run_merge(arguments, name, [(arguments.source, arguments.path)])


def _run_merge(arguments: argparse.Namespace, name: str, sources: list[tuple[str, Path | None]]) -> int:
    """Merges, and returns 1 if cases had to be left out."""
    from nnunet_pretrain.conversion.choose_space import choose_space
    from nnunet_pretrain.conversion.dataset_json import QUARANTINE
    from nnunet_pretrain.conversion.merge import MergeOptions, merge

    options = MergeOptions(
        space=choose_space(arguments.structures, arguments.append, arguments.label_space),
        num_processes=arguments.np,
        overwrite=arguments.overwrite,
        resume=arguments.resume,
        strict=arguments.strict,
        split_paired=arguments.split_paired,
        drop_duplicates=arguments.drop_duplicates,
        dask=arguments.dask,
    )
    folder = merge(arguments.d, name, sources, options, report=print)
    print(f"next: look at {folder / 'report.html'}, then: nnunet_pretrain plan -d {arguments.d}")
    return 1 if (folder / QUARANTINE).is_file() else 0


def _new_source(arguments: argparse.Namespace) -> None:
    from nnunet_pretrain.conversion.new_source import write_starter

    path, unknown = write_starter(arguments.dataset, arguments.o)
    print(f"written to {path}")
    if unknown:
        print(f"{len(unknown)} label names match no structure: {', '.join(unknown)}; say in the file what they are")


def _duplicates(arguments: argparse.Namespace) -> None:
    import json

    from nnunet_pretrain.conversion.duplicates import dataset_fingerprints, find_pairs

    if len(arguments.d) > 2:
        raise ValueError(f"give -d once or twice, got {len(arguments.d)} times")
    read = [dataset_fingerprints(dataset, arguments.np) for dataset in arguments.d]
    pairs = find_pairs(*read)
    if arguments.json:
        print(json.dumps([vars(pair) for pair in pairs], indent=2))
        return
    print("\n".join(map(str, pairs)) or "no image occurs twice")
    counts = " and ".join(
        f"{len(fingerprints)} of {name}" for name, fingerprints in zip(arguments.d, read, strict=True)
    )
    print(f"{len(pairs)} pairs among the images: {counts}")


def _plan(arguments: argparse.Namespace) -> None:
    from nnunet_pretrain.files import read_json
    from nnunet_pretrain.planning import PRETRAIN_PLANS, plan
    from nnunet_pretrain.planning.resampling import resampling_of

    path = plan(arguments.d, arguments.preset, arguments.np, arguments.resampling)
    plans = read_json(path)
    print(f"plans written to {path}, with preset {arguments.preset} and {resampling_of(plans)} resampling")
    for name, chosen in plans["configurations"].items():
        if "patch_size" in chosen:
            spacing = [round(mm, 3) for mm in chosen["spacing"]]
            print(f"  {name}: patch {chosen['patch_size']}, batch {chosen['batch_size']}, spacing {spacing} mm")
    print(
        f"next: nnunet_pretrain preprocess -d {arguments.d} -p {PRETRAIN_PLANS} -c 3d_fullres\n"
        f"      nnUNetv2_train {arguments.d} 3d_fullres all -tr nnUNetTrainerPretrain -p {PRETRAIN_PLANS}"
    )


def _preprocess(arguments: argparse.Namespace) -> None:
    from nnunet_pretrain.preprocessing.preprocess import preprocess

    preprocess(arguments.d, arguments.p, arguments.c, arguments.device, arguments.np, arguments.overwrite)


def _env(arguments: argparse.Namespace) -> None:
    from nnunet_pretrain.folders import export_line

    print(export_line())


def _plan_transfer(arguments: argparse.Namespace) -> None:
    from nnunet_pretrain.planning import SCRATCH_PLANS, TRANSFER_PLANS
    from nnunet_pretrain.transfer.plan_transfer import plan_transfer

    transfer, scratch, card = plan_transfer(arguments.d, arguments.c, arguments.preset, arguments.np, print)
    print(f"plans written to {transfer}\ncontrol from scratch: {scratch}")
    print(
        f"next: nnunet_pretrain preprocess -d {arguments.d} -p {TRANSFER_PLANS} -c {card.configuration}\n"
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
