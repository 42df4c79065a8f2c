"""Where the leaf folders and nnU-Net's folders are."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import nnunet_pretrain

NNUNET_VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
TRAINER_VARIABLE = "nnUNet_extTrainer"


def leaf(name: str) -> Path:
    """Returns the folder of trainers, plans or dataset_conversion, in a checkout or installed.

    Raises:
        FileNotFoundError: The installation is incomplete.
    """
    for parent in nnunet_pretrain.__path__:
        folder = Path(parent) / name
        if (folder / "__init__.py").is_file():
            return folder
    raise FileNotFoundError(
        f"folder '{name}' of nnunet-pretrain not found in {list(nnunet_pretrain.__path__)}; install the package again"
    )


def trainer_search_path() -> str:
    """Returns the value nnUNet_extTrainer needs: our trainers first, then what the user had set."""
    ours = str(leaf("trainers"))
    others = [p for p in os.environ.get(TRAINER_VARIABLE, "").split(os.pathsep) if p.strip() and p != ours]
    return os.pathsep.join([ours, *others])


def command_environment() -> dict[str, str]:
    """Returns variables of the nnU-Net commands we start: they find our trainers, and their logs grow line by line."""
    return {TRAINER_VARIABLE: trainer_search_path(), "PYTHONUNBUFFERED": "1"}


def export_line() -> str:
    """Returns the shell line for `eval "$(nnunet_pretrain env)"`."""
    return f"export {TRAINER_VARIABLE}={shlex.quote(trainer_search_path())}"


def nnunet_folder(variable: str) -> Path:
    """Returns the folder one of nnU-Net's three environment variables names.

    Raises:
        FileNotFoundError: The variable is not set.
    """
    value = os.environ.get(variable)
    if not value:
        raise FileNotFoundError(f"{variable} is not set; export {variable}=/path/to/{variable} as nnU-Net asks for")
    return Path(value).expanduser()


def check_dataset_id(dataset_id: int) -> None:
    """Checks that an id fits nnU-Net's folder names.

    Raises:
        ValueError: The id is not between 1 and 999.
    """
    if not 1 <= dataset_id <= 999:
        raise ValueError(f"dataset id must be between 1 and 999, got {dataset_id}")


def datasets_with_id(dataset_id: int) -> dict[str, list[Path]]:
    """Returns, for each of nnU-Net's folders that is set, the dataset folders that carry an id."""
    pattern = re.compile(rf"Dataset{dataset_id:03d}(_.*)?")
    found: dict[str, list[Path]] = {}
    for variable in NNUNET_VARIABLES:
        root = Path(os.environ.get(variable) or os.devnull)
        if root.is_dir():
            found[variable] = sorted(p for p in root.iterdir() if p.is_dir() and pattern.fullmatch(p.name))
    return found


def raw_folder_to_make(dataset_id: int, name: str) -> Path:
    """Returns the folder of a raw dataset that is to be made, whether it is there already or not.

    Raises:
        ValueError: The id or the name is not possible, or another dataset carries the id.
    """
    check_dataset_id(dataset_id)
    if not name or not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"dataset name must consist of letters, digits, '_' and '-', got '{name}'")
    folder = nnunet_folder("nnUNet_raw") / f"Dataset{dataset_id:03d}_{name}"
    existing = [path for paths in datasets_with_id(dataset_id).values() for path in paths]
    other = [str(path) for path in existing if path.name != folder.name]
    if other:
        raise ValueError(
            f"dataset id {dataset_id} is taken by {', '.join(other)}, and nnU-Net allows one name per id; "
            f"choose another -d or remove it"
        )
    return folder


def dataset_name(dataset: int | str) -> str:
    """Turns an id or a name into the name of a raw nnU-Net dataset, as nnU-Net's commands do.

    Raises:
        ValueError: Several datasets carry the id, or the text is neither an id nor a dataset name.
        FileNotFoundError: There is no such dataset in nnUNet_raw.
    """
    raw = nnunet_folder("nnUNet_raw")
    if not str(dataset).isdigit():
        if not (raw / str(dataset) / "dataset.json").is_file():
            raise FileNotFoundError(f"dataset '{dataset}' not found: {raw / str(dataset) / 'dataset.json'} is missing")
        return str(dataset)
    check_dataset_id(int(dataset))
    names = [p.name for p in datasets_with_id(int(dataset)).get("nnUNet_raw", []) if (p / "dataset.json").is_file()]
    if not names:
        raise FileNotFoundError(
            f"no dataset with id {dataset} in {raw}; expected Dataset{int(dataset):03d}_*/dataset.json"
        )
    if len(names) > 1:
        raise ValueError(f"id {dataset} names several datasets in {raw}: {', '.join(names)}; keep one of them")
    return names[0]


def console_script(name: str) -> str:
    """Returns the console script beside the running Python, or else the one on the search path.

    Raises:
        FileNotFoundError: There is none.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"command '{name}' not found; install the package with `pip install .`")
    return found
