"""Making one nnU-Net raw dataset of many existing ones that share nothing but an encoder: its domains.

The data model is that of a merged dataset: every case follows a label scheme, here that of its domain. No structure is
shared between domains, so the ids of a domain are those of its member, moved by an offset.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_pretrain import __version__
from nnunet_pretrain.conversion.dataset_json import SPLITS
from nnunet_pretrain.conversion.domain_cases import Conversion, convert
from nnunet_pretrain.conversion.domain_checks import check_foreground
from nnunet_pretrain.conversion.domain_members import (
    MIXED_CHANNEL,
    DomainMember,
    read_members,
    reader_for,
)
from nnunet_pretrain.conversion.duplicates import FINGERPRINTS, Pair, find_pairs, groups_of, make_folds
from nnunet_pretrain.conversion.engine import RECORDS, run_all
from nnunet_pretrain.conversion.fingerprint import Fingerprint
from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.folders import raw_folder_to_make
from nnunet_pretrain.labels import BACKGROUND, DUPLICATES_KEY, IGNORE, SCHEMES_KEY, SPACE_KEY, LabelSetTable, LabelSpace

DOMAINS_SPACE = "domains"
CLIP_KEY = "clip_percentiles"
"""Entry of dataset.json: the percentiles its images are clipped to; absent if they are not."""

_NAMED_FAULTS = 5


def make_domains(
    dataset_id: int,
    name: str,
    members: Sequence[int | str],
    channels: Sequence[str] = (),
    clip: tuple[float, float] | None = None,
    num_processes: int = 2,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Makes a dataset of domains, or brings it up to date; cases that are there and unchanged are left alone.

    Label maps are written with ids of the whole dataset. Images stay where they lie, unless they are to be clipped.

    Args:
        dataset_id: nnU-Net dataset id, 1 to 999.
        name: Dataset name without its number.
        members: Ids or names of existing datasets, one per domain.
        channels: See `read_members`.
        clip: Percentiles of each image to clip its intensities to, or None.
        num_processes: Worker processes.
        report: Called with lines for the user.

    Returns:
        The folder of the dataset.

    Raises:
        ValueError: An argument or a member is unusable, or cases could not be converted (after all others are).
        FileNotFoundError: A member or a file of it is missing.
    """
    folder = _target_folder(dataset_id, name)
    found = read_members(members, channels)
    reader = reader_for(found)
    jobs = [job for member, stored in _stored_ids(found) for job in _jobs(member, stored, folder, reader, clip)]
    for member in found:
        label_maps = list(dict.fromkeys(case.label for case in member.cases))
        check_foreground(member.name, label_maps, list(member.structures.values()), reader)
        for note in member.notes:
            report(note)
    missing = [job for job in jobs if job.record() is None]
    surplus = _surplus(folder, jobs)
    if missing or surplus:
        (folder / "dataset.json").unlink(missing_ok=True)  # until it is written again, the dataset is incomplete
    for path in surplus:
        path.unlink()
    report(f"{folder.name}: {len(missing)} of {len(jobs)} cases to convert, in {folder}")
    results = run_all(convert, missing, num_processes=num_processes, what="converting", done=len(jobs) - len(missing))
    faults = [fault for fault in results if fault]
    if faults:
        raise ValueError(
            f"{len(faults)} cases could not be converted, all others are; correct or remove them, then run the command "
            f"again: {'; '.join(faults[:_NAMED_FAULTS])}"
        )
    _finish(folder, found, jobs, report)
    return folder


def _target_folder(dataset_id: int, name: str) -> Path:
    """Returns the dataset's folder, if it is free or holds an earlier run's."""
    folder = raw_folder_to_make(dataset_id, name)
    if (folder / "dataset.json").is_file():
        ours = read_json(folder / "dataset.json").get(SPACE_KEY) == DOMAINS_SPACE
    else:
        ours = (folder / RECORDS).is_dir() or not folder.is_dir() or not any(folder.iterdir())
    if not ours:
        raise ValueError(f"{folder} exists and was not made by `nnunet_pretrain plan_domains`; choose another -d or -n")
    return folder


def _stored_ids(members: Sequence[DomainMember]) -> Iterator[tuple[DomainMember, tuple[int, ...]]]:
    """Yields every member with the stored id of each of its ids."""
    ignore_id, last = 1 + sum(len(member.structures) for member in members), 0
    for member in members:
        structures = len(member.structures)
        stored = [0, *range(last + 1, last + structures + 1)]
        yield member, tuple([*stored, ignore_id] if IGNORE in member.labels else stored)
        last += structures


def _jobs(
    member: DomainMember, stored: tuple[int, ...], folder: Path, reader: str, clip: tuple[float, float] | None
) -> list[Conversion]:
    is_ct = member.channel_names["0"].casefold() == "ct"
    return [Conversion(case, folder, stored, reader, clip, is_ct) for case in member.cases]


def _surplus(folder: Path, jobs: Sequence[Conversion]) -> list[Path]:
    """Returns the files that belong to no case."""
    wanted = {job.folder / name for job in jobs for name in job.outputs} | {job.record_path for job in jobs}
    found = [path for part in ("labelsTr", "imagesTr", RECORDS) for path in (folder / part).glob("*")]
    return [path for path in found if path not in wanted]


def _structure_names(members: Sequence[DomainMember]) -> dict[str, list[str]]:
    """Returns for every member what its structures are called in the whole dataset, in the order of their ids."""
    names: dict[str, list[str]] = {}
    for member in members:
        safe = [re.sub(r"[^A-Za-z0-9_]", "_", f"{member.name}__{label}") for label in member.structures]
        names[member.name] = [n if safe.count(n) == 1 else f"{n}_{i}" for i, n in enumerate(safe, start=1)]
    return names


def domains_dataset_json(
    name: str, members: Sequence[DomainMember], jobs: Sequence[Conversion], groups: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Returns nnU-Net's dataset.json of a dataset of domains.

    Args:
        name: Name of the dataset.
        members: Its domains.
        jobs: Its cases, in the order of the members.
        groups: Cases that show the same patient.
    """
    own = _structure_names(members)
    space = LabelSpace(name=DOMAINS_SPACE, structures=tuple(n for names in own.values() for n in names))
    ignored = any(IGNORE in member.labels for member in members)
    schemes: dict[str, dict[str, list[str]]] = {}
    for member in members:
        others = [structure for structure in space.structures if structure not in own[member.name]]
        sets = {"0": [BACKGROUND, *others], **{str(space.id_of(n)): [n] for n in own[member.name]}}
        schemes[member.name] = sets | ({str(space.ignore_id): list(space.names)} if IGNORE in member.labels else {})
    member_of = {case.case: member.name for member in members for case in member.cases}
    content = {
        "name": name,
        "channel_names": _common_channels(members),
        "labels": space.dataset_labels(ignored),
        "numTraining": len(jobs),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": jobs[0].reader,
        "converted_by": f"nnunet_pretrain {__version__}",
        **({CLIP_KEY: list(jobs[0].clip)} if jobs[0].clip else {}),
        SPACE_KEY: space.name,
        SCHEMES_KEY: schemes,
        "sources": [{"name": member.name, "cases": len(member.cases), **member.facts} for member in members],
        DUPLICATES_KEY: [list(group) for group in groups],
        "domains": {
            member.name: {
                "labels": member.labels,
                "channel_names": member.channel_names,
                "file_ending": ".nii.gz" if jobs[0].clip else member.file_ending,  # as `clip` writes new images
            }
            for member in members
        },
        "dataset": {
            job.case.case: {
                "images": job.images,
                "label": job.label,
                "source": member_of[job.case.case],
                "scheme": member_of[job.case.case],
            }
            for job in jobs
        },
    }
    LabelSetTable.from_dataset_json(content)
    return content


def _common_channels(members: Sequence[DomainMember]) -> dict[str, str]:
    found = [tuple(member.channel_names.values()) for member in members]
    together = enumerate(zip(*found, strict=True))
    return {str(i): names[0] if len(set(names)) == 1 else MIXED_CHANNEL for i, names in together}


def _finish(
    folder: Path, members: Sequence[DomainMember], jobs: Sequence[Conversion], report: Callable[[str], None]
) -> None:
    """Writes fingerprints, folds and, last, dataset.json."""
    records: Mapping[str, Any] = {job.case.case: read_json(job.record_path)["fingerprint"] for job in jobs}
    fingerprints = {case: content for case, content in records.items() if content is not None}
    pairs = find_pairs({case: Fingerprint.from_dict(content) for case, content in fingerprints.items()})
    if pairs:
        report(f"{len(groups_of(pairs))} images occur more than once ({pairs[0]}, ...); they share a fold")
    patients: dict[tuple[str, str], list[str]] = defaultdict(list)
    for member in members:
        for case in member.cases:
            patients[member.name, case.patient].append(case.case)
    same = [Pair(cases[0], other, exact=False, common=0) for cases in patients.values() for other in cases[1:]]
    groups = groups_of([*pairs, *same])
    content = domains_dataset_json(folder.name, members, jobs, groups)
    write_json(folder / FINGERPRINTS, fingerprints)
    write_json(folder / SPLITS, make_folds({case: e["source"] for case, e in content["dataset"].items()}, groups))
    write_json(folder / "dataset.json", content)
