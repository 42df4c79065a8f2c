"""Verbs around datasets of domains."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_pretrain.cli.options import add_processes, add_recipe


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this module's verbs to the parser."""
    verb = verbs.add_parser("plan_domains", help="plan existing datasets as domains of one encoder, a branch for each")
    verb.add_argument("-d", required=True, metavar="DATASET", help="id of the dataset to make, or one that is there")
    verb.add_argument("-n", metavar="NAME", help="name of the dataset to make, without its number")
    verb.add_argument(
        "--members",
        nargs="+",
        default=[],
        metavar="DATASET",
        help="ids or names of existing datasets, one per domain; none: one branch per source of a merged dataset",
    )
    verb.add_argument(
        "--channel",
        nargs="+",
        default=[],
        metavar="NAME",
        help="of members with several channels, the first of these they have; ALL makes every channel a case",
    )
    add_recipe(verb)
    add_processes(verb)
    verb.set_defaults(run=_plan_domains)

    verb = verbs.add_parser("clip", help="clip images to percentiles, as the training images of preset med3d were")
    verb.add_argument("-i", required=True, type=Path, metavar="IN", help="folder of images")
    verb.add_argument("-o", required=True, type=Path, metavar="OUT", help="folder to write them to, as .nii.gz")
    verb.add_argument(
        "--percentiles",
        nargs=2,
        type=float,
        default=[0.5, 99.5],
        metavar=("LOWER", "UPPER"),
        help="percentiles of each image (default: 0.5 99.5)",
    )
    add_processes(verb)
    verb.set_defaults(run=_clip)


def _plan_domains(arguments: argparse.Namespace) -> None:
    from nnunet_pretrain.files import read_json
    from nnunet_pretrain.planning.plan_domains import plan_domains

    path = plan_domains(
        arguments.d,
        arguments.n,
        arguments.members,
        arguments.channel,
        arguments.preset,
        arguments.np,
        arguments.resampling,
        report=print,
    )
    plans, dataset_json = read_json(path), read_json(path.with_name("dataset.json"))
    configuration = plans["configurations"]["3d_fullres"]
    print(f"plans written to {path}, with preset {arguments.preset}")
    print(f"  patch {configuration['patch_size']}, batch {configuration['batch_size']}, for all domains")
    for line in _table(_rows(plans, dataset_json)):
        print(f"  {line}")
    print(
        f"next: nnunet_pretrain preprocess -d {arguments.d} -p {path.stem}\n"
        f"      nnUNetv2_train {arguments.d} 3d_fullres all -tr nnUNetTrainerDomains -p {path.stem}"
    )


def _rows(plans: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> list[list[str]]:
    """Returns a row for every domain, under a row of headings."""
    from nnunet_pretrain.planning.domain_plans import domain_tables
    from nnunet_pretrain.planning.settings import PretrainSettings

    settings, branches = PretrainSettings.from_plans(plans).domains, domain_tables(dataset_json)
    rows = [["domain", "cases", "channel", "spacing in mm", "normalisation", "branch channels", "labels"]]
    for domain, numbers in settings.numbers.items() if settings else ():
        own = dataset_json.get("domains", {}).get(domain, {})
        names = branches[domain].channel_names
        labels = [label for label in own.get("labels", names) if label not in ("background", "ignore")]
        rows.append(
            [
                domain,
                str(sum(entry.get("source") == domain for entry in dataset_json["dataset"].values())),
                ", ".join(own.get("channel_names", dataset_json["channel_names"]).values()),
                " x ".join(f"{mm:.3g}" for mm in numbers.spacing),
                ", ".join(numbers.normalization_schemes),
                str(len(names)),
                ", ".join(labels[:6]) + (", ..." if len(labels) > 6 else ""),
            ]
        )
    return rows


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _clip(arguments: argparse.Namespace) -> None:
    from nnunet_pretrain.conversion.clip import clip_folder

    written = clip_folder(arguments.i, arguments.o, tuple(arguments.percentiles), arguments.np)
    print(f"{len(written)} images written to {arguments.o}, clipped to percentiles {arguments.percentiles}")
