"""Verbs that make datasets."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_pretrain.cli.options import add_processes


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this module's verbs to the parser."""
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
    add_processes(verb)
    verb.set_defaults(run=_duplicates)


def _add_conversion(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--structures", metavar="A,B,...", help="label space: these structures (default: all 31)")
    verb.add_argument("--append", metavar="A,B,...", help="further structures, or a source's name for all of its own")
    verb.add_argument("--label-space", type=Path, metavar="FILE", help="label space from a JSON file")
    verb.add_argument("--split-paired", action="store_true", help="split unsplit kidneys, lungs, ... where it is safe")
    verb.add_argument("--overwrite", action="store_true", help="replace an existing dataset of that id and name")
    verb.add_argument("--resume", action="store_true", help="redo only what is missing or changed")
    verb.add_argument("--strict", action="store_true", help="stop at the first case that cannot be converted")
    verb.add_argument("--dask", metavar="ADDRESS", help="convert on an existing Dask cluster, such as tcp://host:8786")
    add_processes(verb)


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
