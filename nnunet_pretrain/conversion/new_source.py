"""A starter for a user's own source file, made from an nnU-Net dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nnunet_pretrain.conversion.members import match_labels
from nnunet_pretrain.files import read_json, written_atomically
from nnunet_pretrain.folders import dataset_name, nnunet_folder

_HEAD = """\
# A source of your own. Give it to merge as: --source ./{file}=/path/to/the/data
# What every key means: `nnunet_pretrain sources BTCV` shows a complete one; all keys stand in the documentation of
# nnunet_pretrain.conversion.source.Source.
name: {name}
title: {title}
prefix: {prefix} # start of the case names in a merged dataset
{cases}
layouts: # where image and label of a case lie below the folder you give; {{case}} stands for the case's own id
  - images: {images}
    labels: {labels}
# Id to the structure a voxel with that id is. If it may be several things, list them all: [kidney_left, kidney_right].
# `ignore` says that nothing is known. Everything you do not list here is unknown, not absent.
labels:
"""

_TAIL = """\
# Further rules, each with an example:
# also_background: [femur_left]   # annotated in part only: background may hide the rest
# unknown_if_absent: all          # a case without a voxel of an id was not annotated for it
# exclude_cases: {{case_007: wrong patient}}
# label_geometry: from_image      # label headers are wrong, the arrays are right
licence: {licence}
citation: {citation}
"""


def write_starter(dataset: str, output: Path | None = None) -> tuple[Path, list[str]]:
    """Writes a commented source file for a dataset in nnU-Net raw format.

    Args:
        dataset: Id or name in nnUNet_raw, or the path of a dataset.json.
        output: File to write; None takes the dataset's name in the current folder.

    Returns:
        The file, and the label names that match no structure and stand in it as comments.

    Raises:
        ValueError: The output exists.
        FileNotFoundError: There is no such dataset.
    """
    path = Path(dataset).expanduser()
    if path.name != "dataset.json":
        path = nnunet_folder("nnUNet_raw") / dataset_name(dataset) / "dataset.json"
    content = read_json(path)
    name = path.resolve().parent.name
    output = output or Path(f"{name}.yaml")
    if output.exists():
        raise ValueError(f"{output} exists; choose another file with -o or remove it")
    text, unknown = starter(name, content, output.name)
    with written_atomically(output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return output, unknown


def starter(name: str, content: Mapping[str, Any], file: str) -> tuple[str, list[str]]:
    """Returns the text of a source file for a dataset.json, and the label names that match no structure."""
    ending = content.get("file_ending", ".nii.gz")
    labels, unknown = match_labels(content["labels"])
    title = str(content.get("description") or content.get("name") or name)
    head = _HEAD.format(
        file=file,
        name=name,
        title=_quoted(title),
        prefix="".join(c for c in name if c.isalnum()),
        cases=f"cases: {int(content['numTraining'])}" if "numTraining" in content else "# cases: 100",
        images=_quoted(f"imagesTr/{{case}}_0000{ending}"),
        labels=_quoted(f"labelsTr/{{case}}{ending}"),
    )
    tail = _TAIL.format(
        licence=_quoted(str(content.get("licence", content.get("license", "not stated")))),
        citation=_quoted(str(content.get("reference", "not stated"))),
    )
    return head + "".join(_label_lines(content["labels"], labels, unknown)) + tail, list(unknown)


def _label_lines(
    names: Mapping[str, Any], labels: Mapping[Any, tuple[str, ...]], unknown: Mapping[str, Sequence[str]]
) -> list[str]:
    called: dict[int, list[str]] = {}
    for label_name, ids in names.items():
        for label_id in ids if isinstance(ids, (list, tuple)) else [ids]:
            called.setdefault(int(label_id), []).append(label_name)
    lines = []
    for label_id in sorted(set(called) - {0}):
        remark = " # here called " + ", ".join(called[label_id])
        if label_id in labels:
            lines.append(f"  {label_id}: {labels[label_id][0]}{remark}\n")
        else:
            near = [n for label_name in called[label_id] for n in unknown.get(label_name, ())]
            hint = ", ".join(dict.fromkeys(near)) or "ignore"
            lines.append(f"  # {label_id}: ?{remark}; say which structure this is; the nearest names are: {hint}\n")
    return lines


def _quoted(text: str) -> str:
    return str(yaml.safe_dump(text, width=10_000, default_style='"')).strip()
