"""Verbs around 2D natural images."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_pretrain.cli.options import add_processes


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this module's verbs to the parser."""
    _add_convert(verbs.add_parser("convert_2d", help="make one nnU-Net raw dataset of 2D photographs"))
    _add_plan(verbs.add_parser("plan_2d", help="plan a pre-training on natural images with a 3D target's network"))


def _add_convert(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("path", type=Path, metavar="PATH", help="folder of the images")
    verb.add_argument("-d", type=int, required=True, metavar="ID", help="dataset id, 1 to 999")
    verb.add_argument("-n", required=True, metavar="NAME", help="dataset name")
    verb.add_argument(
        "--task", required=True, choices=("classification", "segmentation"), help="learn classes of images, or masks"
    )
    verb.add_argument("--layout", metavar="NAME", help="a known dataset, or your own .yaml (default: recognised)")
    verb.add_argument(
        "--storage",
        choices=("volumes", "originals"),
        default="volumes",
        help="write every image as a volume, or read the originals in training (default: %(default)s)",
    )
    verb.add_argument("--labels", type=Path, metavar="FILE", help="JSON that names the values of masks")
    verb.add_argument("--strict", action="store_true", help="stop at the first image that cannot be used")
    verb.add_argument("--dask", metavar="ADDRESS", help="convert on an existing Dask cluster, such as tcp://host:8786")
    add_processes(verb)
    verb.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> int:
    """Converts, and returns 1 if images had to be left out."""
    from nnunet_pretrain.conversion.dataset_json import QUARANTINE
    from nnunet_pretrain.conversion.natural_images.convert import NaturalImageOptions, convert_2d

    options = NaturalImageOptions(
        layout=arguments.layout,
        storage=arguments.storage,
        labels=arguments.labels,
        strict=arguments.strict,
        dask=arguments.dask,
        num_processes=arguments.np,
    )
    folder = convert_2d(arguments.path, arguments.d, arguments.n, arguments.task, options, report=print)
    print(f"next: nnunet_pretrain plan_2d -d {arguments.d} --target-plans PLANS_OF_A_3D_DATASET")
    return 1 if (folder / QUARANTINE).is_file() else 0


def _add_plan(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("-d", required=True, metavar="DATASET", help="id or name of a dataset made by convert_2d")
    verb.add_argument(
        "--target-plans",
        required=True,
        metavar="PLANS",
        help="plans of the 3D target: a .json file, a dataset (its nnUNetPlans), or DATASET/PLANS",
    )
    verb.add_argument("-c", default="3d_fullres", metavar="CONFIG", help="configuration of them (default: %(default)s)")
    verb.add_argument("--preset", help="a recipe, or your own .json (default: vdt, or vdt_segmentation for masks)")
    verb.add_argument("--full-kernels", action="store_true", help="train kernels of depth 1 as kernels of depth 3")
    add_processes(verb)
    verb.set_defaults(run=_plan)


def _plan(arguments: argparse.Namespace) -> None:
    from nnunet_pretrain.files import read_json
    from nnunet_pretrain.planning.natural_plans import GREY_PLANS, UNSHUFFLED_PLANS
    from nnunet_pretrain.planning.plan_2d import plan_2d
    from nnunet_pretrain.planning.settings import PretrainSettings

    path = plan_2d(
        arguments.d,
        arguments.target_plans,
        arguments.c,
        arguments.preset,
        arguments.full_kernels,
        arguments.np,
        report=print,
    )
    settings = PretrainSettings.from_plans(read_json(path))
    print(f"plans written to {path}, with preset {settings.preset}")
    print(f"controls: {GREY_PLANS} (grey slices), {UNSHUFFLED_PLANS} (slices never shuffled)")
    assert settings.natural_images is not None
    preprocess = f"nnunet_pretrain preprocess -d {arguments.d} -p {path.stem} (once for all three)"
    if settings.natural_images.storage == "originals":
        preprocess = "nothing to preprocess, training reads the original images"
    trainer = f"nnUNetTrainerVDT{settings.natural_images.task.title()}"
    print(f"next: {preprocess}\n      nnUNetv2_train {arguments.d} 3d_fullres all -tr {trainer} -p {path.stem}")
