"""Verbs that plan and preprocess a pre-training."""

from __future__ import annotations

import argparse

from nnunet_pretrain.cli.options import add_processes, add_recipe


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this module's verbs to the parser."""
    verb = verbs.add_parser("plan", help="fingerprint and plan a merged dataset: writes nnUNetPretrainPlans")
    verb.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name")
    add_recipe(verb)
    add_processes(verb)
    verb.set_defaults(run=_plan)

    verb = verbs.add_parser("preprocess", help="what nnUNetv2_preprocess does, faster, and resumable")
    verb.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name")
    verb.add_argument("-p", default="nnUNetPretrainPlans", metavar="PLANS", help="plans (default: %(default)s)")
    verb.add_argument("-c", nargs="+", default=["3d_fullres"], metavar="CONFIG", help="default: 3d_fullres")
    verb.add_argument("--device", choices=("cuda", "cpu"), help="where torch resamples (default: cuda if there is one)")
    verb.add_argument("--overwrite", action="store_true", help="make all cases again")
    add_processes(verb)
    verb.set_defaults(run=_preprocess)

    verb = verbs.add_parser("env", help='print the export line for eval "$(nnunet_pretrain env)"')
    verb.set_defaults(run=_env)


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
