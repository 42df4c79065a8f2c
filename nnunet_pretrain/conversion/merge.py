"""Merging differently labelled sources into one nnU-Net raw dataset."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_pretrain import __version__
from nnunet_pretrain.conversion.convert import Conversion, Converted, convert_case
from nnunet_pretrain.conversion.layout import find_cases
from nnunet_pretrain.conversion.source import Source, find_source
from nnunet_pretrain.files import write_json
from nnunet_pretrain.folders import check_dataset_id, datasets_with_id, nnunet_folder
from nnunet_pretrain.labels import DEFAULT_SPACE, SCHEMES_KEY, SPACE_KEY, LabelScheme, LabelSetTable, LabelSpace


def merge(
    dataset_id: int,
    name: str,
    sources: Sequence[tuple[str, Path]],
    *,
    space: LabelSpace = DEFAULT_SPACE,
    num_processes: int = 1,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Makes one nnU-Net raw dataset of several sources; images are referenced, labels are written.

    The dataset appears complete or not at all: everything is written into a temporary folder first.

    Args:
        dataset_id: nnU-Net dataset id, 1 to 999.
        name: Dataset name without its number.
        sources: Source name (or path of a source file) and the folder it lies in.
        space: Label space of the merged dataset.
        num_processes: Number of worker processes.
        overwrite: Whether an existing dataset of that id and name is replaced.
        report: Called with one line per source and one for the result.

    Returns:
        The folder of the dataset.

    Raises:
        ValueError: An argument is unusable, the dataset exists, or the files of a case contradict each other.
        FileNotFoundError: A folder or a file of a case is missing.
    """
    folder = _target_folder(dataset_id, name, overwrite)
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    schemes, jobs = _collect(sources, space, partial / "labelsTr", report)
    try:
        content = _dataset_json(folder.name, space, schemes, jobs)
        table = LabelSetTable.from_dataset_json(content)
        converted = _convert_all([job for _, job in jobs], num_processes)
        write_json(partial / "dataset.json", content)
        _replace(folder, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for remark in _remarks(folder, dataset_id, table.untaught, converted):
        report(remark)
    report(f"{folder.name}: {len(jobs)} cases written to {folder}")
    return folder


def _collect(
    sources: Sequence[tuple[str, Path]], space: LabelSpace, output: Path, report: Callable[[str], None]
) -> tuple[dict[str, LabelScheme], list[tuple[Source, Conversion]]]:
    """Returns the label scheme of each source, and what to convert."""
    if not sources:
        raise ValueError("nothing to merge: give at least one --source NAME=PATH")
    schemes: dict[str, LabelScheme] = {}
    jobs: list[tuple[Source, Conversion]] = []
    for name, path in sources:
        source, root = find_source(name), path.expanduser()
        scheme, stored = source.scheme(space)
        if schemes.setdefault(scheme.name, scheme) != scheme:
            raise ValueError(f"two different sources are called '{scheme.name}'; rename one in its source file")
        cases = find_cases(source, root)
        jobs += [(source, Conversion(files, stored, output / f"{files.case}.nii.gz")) for files in cases]
        report(f"{source.name}: {len(cases)} cases in {root}")
    _check_case_names(job.files.case for _, job in jobs)
    return schemes, jobs


def _remarks(folder: Path, dataset_id: int, untaught: tuple[str, ...], converted: list[Converted]) -> list[str]:
    """Returns what the user must know about the finished dataset."""
    remarks = []
    if untaught:
        remarks.append(f"no source annotates {', '.join(untaught)}; a network trained on this will not predict them")
    overlapping = sum(result.overlapping_voxels > 0 for result in converted)
    if overlapping:
        remarks.append(f"masks overlapped in {overlapping} cases; the smaller structure won")
    stale = [str(path) for found in datasets_with_id(dataset_id).values() for path in found if path != folder]
    if stale:
        remarks.append(f"made from the dataset that was replaced, plan and preprocess again: {', '.join(stale)}")
    return remarks


def _target_folder(dataset_id: int, name: str, overwrite: bool) -> Path:
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
    if folder in existing and not overwrite:
        raise ValueError(f"{folder} exists; choose another -d or replace it with --overwrite")
    return folder


def _check_case_names(cases: Iterable[str]) -> None:
    seen: set[str] = set()
    for case in cases:
        if case in seen:
            raise ValueError(f"case '{case}' occurs twice; give every source a prefix and a folder of its own")
        seen.add(case)
    if not seen:
        raise ValueError("nothing to merge: the sources hold no cases beside the excluded ones")


def _convert_all(jobs: list[Conversion], num_processes: int) -> list[Converted]:
    if num_processes < 1:
        raise ValueError(f"-np must be at least 1, got {num_processes}")
    progress = tqdm(total=len(jobs), desc="merging", unit="case")
    with progress:
        if num_processes == 1:
            return [_advance(progress, convert_case(job)) for job in jobs]
        with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
            try:
                return [_advance(progress, result) for result in pool.map(convert_case, jobs)]
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _advance(progress: tqdm, result: Converted) -> Converted:
    progress.update()
    return result


def _dataset_json(
    dataset: str, space: LabelSpace, schemes: Mapping[str, LabelScheme], jobs: list[tuple[Source, Conversion]]
) -> dict[str, Any]:
    """Returns nnU-Net's dataset.json, extended by label schemes and sources."""
    schemes = dict(schemes)
    entries: dict[str, Any] = {}
    for source, job in jobs:
        scheme = _scheme_of_case(schemes[source.name], job, space)
        schemes.setdefault(scheme.name, scheme)
        entries[job.files.case] = {
            "images": [str(job.files.image.absolute())],
            "label": f"labelsTr/{job.files.case}.nii.gz",
            "source": source.name,
            "scheme": scheme.name,
        }
    used = sorted({entry["scheme"] for entry in entries.values()})
    by_name = {source.name: source for source, _ in jobs}
    return {
        "name": dataset,
        "channel_names": {"0": "CT"},
        "labels": space.dataset_labels(any(space.ignore_id in schemes[scheme].sets for scheme in used)),
        "numTraining": len(entries),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "NibabelIOWithReorient",
        "converted_by": f"nnunet_pretrain {__version__}",
        SPACE_KEY: space.name,
        SCHEMES_KEY: {name: {str(i): list(s) for i, s in schemes[name].sets.items()} for name in used},
        "sources": [_describe(source, jobs) for source in by_name.values()],
        "dataset": entries,
    }


def _describe(source: Source, jobs: list[tuple[Source, Conversion]]) -> dict[str, Any]:
    facts = {key: getattr(source, key) for key in ("name", "title", "licence", "url", "citation")}
    return {**facts, "cases": sum(other.name == source.name for other, _ in jobs), "notes": list(source.notes)}


def _scheme_of_case(scheme: LabelScheme, job: Conversion, space: LabelSpace) -> LabelScheme:
    """Returns the source's scheme, or one in which the masks the case lacks are unknown."""
    if job.files.labels is not None:
        return scheme
    unknown = sorted({stored_id for mask, stored_id in job.stored.items() if mask not in job.files.masks} - {0})
    if not unknown:
        return scheme
    name = f"{scheme.name} without {', '.join(space.names[i] for i in unknown)}"
    return scheme.with_unknown(unknown, name, space, {job.stored[mask] for mask in job.files.masks})


def _replace(folder: Path, partial: Path) -> None:
    """Puts the finished dataset in place of an older one, which goes only when the new one is there."""
    previous = folder.with_name(f".previous-{folder.name}")
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        folder.replace(previous)
    partial.replace(folder)
    shutil.rmtree(previous, ignore_errors=True)
