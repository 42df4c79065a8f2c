"""The leaf folders work in a checkout and installed, and nnU-Net finds our trainers there."""

import ast
import os
import pickle
import subprocess
import sys

import pytest
from nnunet_runs import run, script

from nnunet_pretrain.folders import TRAINER_VARIABLE, export_line, leaf

TRAINERS = (
    "nnUNetTrainerPretrain",
    "nnUNetTrainerDomains",
    "nnUNetTrainerTransfer",
    "nnUNetTrainerClassification",
)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_nnunet_finds_our_trainer_and_its_parts_can_be_pickled(trainer, monkeypatch):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    monkeypatch.setenv(TRAINER_VARIABLE, str(leaf("trainers")))
    found = recursive_find_trainer_class_by_name(trainer)
    assert found.__name__ == trainer
    assert found.__module__ == "nnunet_pretrain_trainers"  # not one of nnU-Net's own of the same name
    parts = [part for part in found.__mro__[1:] if part.__module__.startswith("nnunet_pretrain.")]
    assert parts
    assert all(pickle.loads(pickle.dumps(part)) is part for part in parts)
    assert found.build_network_architecture is nnUNetTrainer.build_network_architecture


def test_trainers_folder_defines_only_thin_trainers():
    for path in leaf("trainers").glob("nnunet_pretrain_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body[1:]:
            assert isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef), ast.unparse(node)
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, "nnU-Net imports these files without a package"
            if isinstance(node, ast.ClassDef):
                assert node.name.startswith("nnUNetTrainer")


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("trainers", "*.py"),
        ("plans", "*.json"),
        ("dataset_conversion", "*.yaml"),
        ("dataset_conversion", "*.json"),
        ("dataset_conversion", "natural_images/*.yaml"),
    ],
)
def test_leaves_are_there_with_their_files(name, ending):
    assert list(leaf(name).glob(ending))


def test_env_line_puts_our_trainers_first_and_keeps_others(monkeypatch):
    monkeypatch.setenv(TRAINER_VARIABLE, os.pathsep.join(["/a b", str(leaf("trainers"))]))
    value = subprocess.run(
        ["bash", "-c", f'{export_line()}; printf %s "${TRAINER_VARIABLE}"'],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    ).stdout
    assert value.split(os.pathsep) == [str(leaf("trainers")), "/a b"]


def test_console_script_and_module_start_without_torch():
    assert "plan_transfer" in run([script("nnunet_pretrain"), "--help"], {})
    code = "import sys; from nnunet_pretrain.cli import _parser; _parser().format_help(); "
    code += "print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert run([sys.executable, "-c", code], {}).split() == ["False", "False"]
