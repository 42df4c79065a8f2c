"""What a merge is made of: public sources, users' own, and datasets that are in nnU-Net raw format already."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_pretrain.conversion.catalogue import find_source
from nnunet_pretrain.conversion.layout import CaseFiles, FoundCases, find_cases
from nnunet_pretrain.conversion.source import Layout, RawId, Source
from nnunet_pretrain.files import read_json
from nnunet_pretrain.folders import nnunet_folder
from nnunet_pretrain.labels import IGNORE, SCHEMES_KEY, LabelSetTable, LabelSpace
from nnunet_pretrain.labels.synonyms import match, nearest_names

_DATASET = re.compile(r"Dataset(\d{3})_\w[\w-]*")


@dataclass(frozen=True)
class Member:
    """One source of a merge and what lies in its folder.

    Attributes:
        source: The source.
        root: Its folder.
        found: Its cases.
    """

    source: Source
    root: Path
    found: FoundCases


def resolve_members(sources: Sequence[tuple[str, Path | None]], space: LabelSpace) -> list[Member]:
    """Finds the sources of a merge and their cases.

    Args:
        sources: Source name (or path of a source file) and its folder; for a dataset in nnU-Net raw format its name,
            and its folder or None if it lies in nnUNet_raw.
        space: Label space of the merge, whose structures a dataset's label names may name.

    Raises:
        ValueError: A source is unknown, annotates nothing of the label space, or shares its name with another one.
        FileNotFoundError: A folder is missing or holds no case.
    """
    if not sources:
        raise ValueError("nothing to merge: give at least one --source NAME=PATH")
    members: list[Member] = []
    for name, path in sources:
        if _DATASET.fullmatch(name):
            members += read_nnunet_dataset(path or nnunet_folder("nnUNet_raw") / name, space)
        elif path is None:
            raise ValueError(f"--source must be NAME=PATH, got '{name}'; only datasets in nnUNet_raw need no path")
        else:
            source, root = find_source(name), path.expanduser()
            members.append(Member(source, root, find_cases(source, root)))
    by_name: dict[str, Source] = {}
    for member in members:
        source = member.source
        if by_name.setdefault(source.name, source) != source:
            raise ValueError(f"two different sources are called '{source.name}'; rename one in its source file")
        if not any(source.scheme(space)[1].values()):
            raise ValueError(
                f"source {source.name} annotates nothing of label space '{space.name}' "
                f"({', '.join(space.structures[:8])}, ...); leave it out"
            )
    if not any(member.found.cases or member.found.faulty for member in members):
        raise ValueError("nothing to merge: the sources hold no cases beside the excluded ones")
    return members


def read_nnunet_dataset(folder: Path, space: LabelSpace) -> list[Member]:
    """Takes a dataset in nnU-Net raw format as a source.

    Label names are matched to structures by name and synonym. A dataset made by `merge` or `convert` keeps the label
    schemes of its cases and becomes one member per scheme.

    Raises:
        FileNotFoundError: The folder has no dataset.json, or holds no case.
        ValueError: The dataset is not CT, or a label name matches no structure.
    """
    content = read_json(folder / "dataset.json")
    channels = content.get("channel_names", content.get("modality", {}))
    if [str(name).lower() for name in channels.values()] != ["ct"]:
        raise ValueError(f"{folder.name} has channels {channels}, expected one called CT")
    cases = _cases_of(folder, content)
    if SCHEMES_KEY in content:
        return _merged_members(folder, content, cases)
    source = nnunet_source(folder, content, space)
    named = [CaseFiles(f"{source.prefix}_{files.case}", files.image, files.labels) for files in cases]
    return [Member(source, folder, FoundCases(named, {}, {}))]


def nnunet_source(folder: Path, content: Mapping[str, Any], space: LabelSpace | None = None) -> Source:
    """Describes a dataset in nnU-Net raw format as a source.

    Args:
        folder: The dataset's folder, Dataset027_X.
        content: Its dataset.json.
        space: A label space whose structures may be named beside the known ones.

    Raises:
        ValueError: A label name matches no structure; the message lists the nearest names.
    """
    labels, unknown = match_labels(content["labels"], space.structures if space else ())
    if unknown:
        hints = "; ".join(f"'{name}' (nearest: {', '.join(near) or 'none'})" for name, near in unknown.items())
        raise ValueError(
            f"{folder.name}: label names match no structure: {hints}; write a source file with "
            f"`nnunet_pretrain new_source {folder.name}`, say there what they are, and give it as --source"
        )
    return _as_source(folder, content, labels)


def match_labels(
    names: Mapping[str, Any], further: Sequence[str] = ()
) -> tuple[dict[RawId, tuple[str, ...]], dict[str, list[str]]]:
    """Matches the `labels` of a dataset.json to structures.

    An id in several nnU-Net regions is named by the smallest of them.

    Args:
        names: Label name to id, or to the ids of a region.
        further: Structures beyond those this package knows.

    Returns:
        Id to structures, and each unmatched name to the nearest known names.
    """
    regions = {name: set(ids) if isinstance(ids, (list, tuple)) else {ids} for name, ids in names.items()}
    labels: dict[RawId, tuple[str, ...]] = {}
    unknown: dict[str, list[str]] = {}
    for label_id in sorted({int(i) for ids in regions.values() for i in ids} - {0}):
        name = min((name for name, ids in regions.items() if label_id in ids), key=lambda name: len(regions[name]))
        found = IGNORE if name == IGNORE else match(name, further)
        if found is None:
            unknown[name] = nearest_names(name, further)
        else:
            labels[label_id] = (found,)
    return labels, unknown


def _as_source(folder: Path, content: Mapping[str, Any], labels: Mapping[RawId, tuple[str, ...]]) -> Source:
    ending = content.get("file_ending", ".nii.gz")
    number = _DATASET.fullmatch(folder.name)
    return Source(
        name=folder.name,
        title=str(content.get("name", folder.name)),
        prefix=f"D{number[1]}" if number else "D",
        cases=content.get("numTraining"),
        layouts=(Layout(images=f"imagesTr/{{case}}_0000{ending}", labels=f"labelsTr/{{case}}{ending}"),),
        labels=dict(labels),
        licence=str(content.get("licence", content.get("license", "not stated"))),
        citation=str(content.get("reference", content.get("citation", "not stated"))),
        url="",
    )


def _cases_of(folder: Path, content: Mapping[str, Any]) -> list[CaseFiles]:
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    if "dataset" not in content and not (folder / "imagesTr").is_dir():
        raise FileNotFoundError(f"{folder} has neither imagesTr nor a list of cases in dataset.json")
    files = get_filenames_of_train_images_and_targets(str(folder), dict(content))
    if not files:
        raise FileNotFoundError(f"{folder} holds no training case")
    return [CaseFiles(case, Path(files[case]["images"][0]), Path(files[case]["label"])) for case in sorted(files)]


def _merged_members(folder: Path, content: Mapping[str, Any], cases: list[CaseFiles]) -> list[Member]:
    """Returns one member per label scheme of a dataset that `merge` made."""
    table = LabelSetTable.from_dataset_json(content)
    facts = {source["name"]: source for source in content.get("sources", [])}
    members = []
    for index, scheme in enumerate(table.schemes):
        own = [files for files in cases if table.scheme_of_case[files.case] == index]
        if not own:
            continue
        annotated = {s for i, found in scheme.sets.items() if i not in (0, table.space.ignore_id) for s in found}
        hidden = set(scheme.sets[0])
        origin = facts.get(content["dataset"][own[0].case].get("source"), {})
        source = Source(
            name=re.sub(r"[^A-Za-z0-9._-]+", "-", scheme.name).strip("-"),
            title=str(origin.get("title", folder.name)),
            prefix=re.sub(r"\W|_", "", own[0].case.split("_")[0]) or "D",
            layouts=(Layout(images="imagesTr/{case}_0000.nii.gz", labels="labelsTr/{case}.nii.gz"),),
            labels={
                i: (IGNORE,) if i == table.space.ignore_id else _main_first(table.space.names[i], found)
                for i, found in scheme.sets.items()
                if i
            },
            also_background=tuple(s for s in table.space.structures if s in annotated & hidden),
            known_absent=tuple(s for s in table.space.structures if s not in annotated | hidden),
            licence=str(origin.get("licence", "not stated")),
            citation=str(origin.get("citation", "not stated")),
            url=str(origin.get("url", "")),
            notes=tuple(origin.get("notes", ())),
        )
        members.append(Member(source, folder, FoundCases(own, {}, {})))
    return members


def _main_first(structure: str, found: Sequence[str]) -> tuple[str, ...]:
    return (structure, *(s for s in found if s != structure))
