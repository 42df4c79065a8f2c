"""The work folder of a benchmark that trains: nnU-Net's folders and variables, what it holds, and commands in it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.folders import NNUNET_VARIABLES, TRAINER_VARIABLE, trainer_search_path


def set_environment(work: Path, device: str) -> None:
    """Sets nnU-Net's folders and, on the CPU, one thread and no worker processes, as two runs share two cores."""
    small = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f", "OMP_NUM_THREADS": "1"}
    small["OMP_WAIT_POLICY"] = "PASSIVE"  # nnU-Net's training takes all cores whatever is set; threads must not spin
    gpu = {"nnUNet_n_proc_DA": "6", "nnUNet_def_n_proc": "3", "nnUNet_compile": "f"}
    os.environ.update({variable: str(work / variable) for variable in NNUNET_VARIABLES})
    os.environ.update(gpu if device == "cuda" else small)
    os.environ[TRAINER_VARIABLE] = trainer_search_path()


def claim(work: Path, settings: dict[str, Any]) -> None:
    """Makes sure that the folder holds a benchmark with these settings or nothing, and makes nnU-Net's folders in it.

    Raises:
        ValueError: It holds something else.
    """
    path = work / "benchmark.json"
    settings = json.loads(json.dumps(settings))  # as it reads back, lists for tuples
    if path.is_file() and read_json(path) != settings:
        raise ValueError(f"{work} holds a benchmark of other settings {read_json(path)}; choose another folder")
    if not path.is_file() and work.is_dir() and any(work.iterdir()):
        raise ValueError(f"{work} is not empty and holds no benchmark; choose another folder")
    for folder in NNUNET_VARIABLES:
        (work / folder).mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def parser_of_studies(description: str | None, studies: Sequence[str], scales: Iterable[str]) -> ArgumentParser:
    """Returns a command line with what all benchmarks have that train in a work folder.

    Args:
        description: What `--help` says.
        studies: Names of the parts; the first is the default.
        scales: Names of the sizes, "small" among them.
    """
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--study", choices=studies, default=studies[0])
    parser.add_argument("--scale", choices=sorted(scales), default="small")
    parser.add_argument("--seeds", type=int, help="instead of the scale's")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("-device", choices=("cpu", "cuda"), default="cpu")
    return parser


def command(words: list[Any], **variables: str) -> None:
    """Runs a console script of this Python."""
    script = Path(sys.executable).with_name(words[0])
    subprocess.run([script, *map(str, words[1:])], check=True, env={**os.environ, **variables})


def epochs_of(epochs: int, steps: int, validation: int, save_every: int) -> dict[str, int]:
    """Returns the entries of a preset that say how long a training is."""
    return {
        "num_epochs": epochs,
        "num_iterations_per_epoch": steps,
        "num_val_iterations_per_epoch": validation,
        "save_every": save_every,
    }


def session(device: str) -> str:
    """Returns the command this process was started with and its machine, in Markdown."""
    import torch

    arguments = " ".join(sys.argv[1:])
    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    return (
        f"```bash\npython benchmarks/{Path(sys.argv[0]).name} {arguments}\n```\n\n"
        f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}."
    )


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
