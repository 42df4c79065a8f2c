"""Merging differently labelled sources into one nnU-Net raw dataset."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_pretrain.conversion.dataset_json import MANIFEST, QUARANTINE, make_dataset_json, write_side_files
from nnunet_pretrain.conversion.duplicates import FINGERPRINTS, Pair, find_pairs, groups_of, to_drop
from nnunet_pretrain.conversion.engine import RECORDS, can_restore, convert_or_quarantine, read_records, run_all
from nnunet_pretrain.conversion.members import Member, resolve_members
from nnunet_pretrain.conversion.record import Conversion, Record
from nnunet_pretrain.conversion.report import write_report
from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.folders import datasets_with_id, raw_folder_to_make
from nnunet_pretrain.labels import DEFAULT_SPACE, IGNORE, LabelSetTable, LabelSpace

PICTURES_PER_SOURCE = 6
MAX_STRUCTURES = 254
"""Stored ids are bytes, and one of them is `ignore`."""


@dataclass(frozen=True)
class MergeOptions:
    """How to merge.

    Attributes:
        space: Label space of the merged dataset.
        num_processes: Number of worker processes.
        overwrite: Whether an existing dataset of that id and name is replaced.
        resume: Whether to keep what an interrupted run, or the existing dataset, already has and is unchanged.
        strict: Whether the first case that cannot be converted ends the merge.
        split_paired: Whether unsplit paired organs are split into left and right where that is safe.
        drop_duplicates: Whether of several cases with the same image only that of the source named first stays.
        dask: Address of a Dask scheduler, or None.
    """

    space: LabelSpace = DEFAULT_SPACE
    num_processes: int = 1
    overwrite: bool = False
    resume: bool = False
    strict: bool = False
    split_paired: bool = False
    drop_duplicates: bool = False
    dask: str | None = None


def merge(
    dataset_id: int,
    name: str,
    sources: Sequence[tuple[str, Path | None]],
    options: MergeOptions | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Makes one nnU-Net raw dataset of several sources; images are referenced, labels are written.

    Everything is written into a hidden folder beside the dataset, which is put in place when it is complete. After an
    interruption that folder stays for `resume`. Cases that cannot be converted are left out and listed in
    quarantine.json.

    Args:
        dataset_id: nnU-Net dataset id, 1 to 999.
        name: Dataset name without its number.
        sources: Source name (or path of a source file) and the folder it lies in; for a dataset in nnUNet_raw its
            name and None.
        options: How to merge.
        report: Called with one line per source and one for the result.

    Returns:
        The folder of the dataset.

    Raises:
        ValueError: An argument is unusable, the dataset exists, no case could be converted, or with `strict` a case
            could not.
        FileNotFoundError: A source's folder is missing or holds no case.
    """
    options = options or MergeOptions()
    folder = _target_folder(dataset_id, name, options)
    members = resolve_members(sources, options.space)
    for member in members:
        report(_found(member))
        for line in _not_told_apart(member, options.space):
            report(line)
    run = _Run(folder, members, options, report)
    run.convert()
    run.finish()
    for remark in run.remarks(dataset_id):
        report(remark)
    report(f"{folder.name}: {len(run.kept)} cases written to {folder}")
    return folder


@dataclass
class _Run:
    """One merge: what is to be done, and what came of it."""

    folder: Path
    members: list[Member]
    options: MergeOptions
    report: Callable[[str], None]
    records: dict[str, Record] = field(default_factory=dict)
    kept: list[Record] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def partial(self) -> Path:
        """Where the dataset grows until it is complete."""
        return self.folder.with_name(f".partial-{self.folder.name}")

    def jobs(self) -> list[Conversion]:
        """Returns all conversions, in the order of sources and cases."""
        options, jobs = self.options, []
        for member in self.members:
            for position, files in enumerate(member.found.cases):
                picture = position < PICTURES_PER_SOURCE
                source = member.source
                jobs.append(Conversion(files, source, options.space, self.partial, options.split_paired, picture))
        return jobs

    def convert(self) -> None:
        """Converts what is not there yet."""
        jobs = self.jobs()
        _check_case_names([job.files.case for job in jobs])
        if self.options.strict:
            _refuse_quarantined({case: why for member in self.members for case, why in member.found.faulty.items()})
        earlier = self._earlier_records()
        for job in jobs:
            record = earlier.get(job.files.case)
            if record and record.still_holds(job):
                self.records[job.files.case] = record
        if self.options.resume:
            self.report(f"{len(self.records)} of {len(jobs)} cases are there already and unchanged")
        open_jobs = [job for job in jobs if job.files.case not in self.records]
        results = run_all(
            convert_or_quarantine,
            open_jobs,
            num_processes=self.options.num_processes,
            what="merging",
            dask=self.options.dask,
            done=len(self.records),
        )
        for record in results:
            self.records[record.case] = record
            if record.quarantined and self.options.strict:
                _refuse_quarantined({record.case: record.quarantined})

    def finish(self) -> None:
        """Finds duplicates, writes everything beside the labels, and puts the dataset in place."""
        order = [job.files.case for job in self.jobs()]
        quarantined = {case: why for member in self.members for case, why in member.found.faulty.items()}
        quarantined |= {case: self.records[case].quarantined or "" for case in order if self.records[case].quarantined}
        converted = [self.records[case] for case in order if case not in quarantined]
        if not converted:
            shutil.rmtree(self.partial, ignore_errors=True)
            _refuse_quarantined(quarantined, "no case could be converted")
        self.pairs = find_pairs({record.case: record.content for record in converted})
        dropped = to_drop(groups_of(self.pairs), order) if self.options.drop_duplicates else {}
        self.kept = [record for record in converted if record.case not in dropped]
        excluded = {case: why for member in self.members for case, why in member.found.excluded.items()}
        reasons = {case: f"same image as {other}" for case, other in dropped.items()}
        self.left_out = {"quarantined": quarantined, "excluded": excluded, "dropped": reasons}
        self._tidy()
        sources = list({member.source.name: member.source for member in self.members}.values())
        among_kept = [pair for pair in self.pairs if not {pair.first, pair.second} & set(dropped)]
        content = make_dataset_json(self.folder.name, self.options.space, self.kept, sources, among_kept)
        write_json(self.partial / "dataset.json", content)
        write_side_files(self.partial, self.kept, self.pairs, self.left_out)
        write_report(
            self.partial,
            self.folder.name,
            self.options.space,
            self.members,
            self.kept,
            self.pairs,
            self.left_out,
        )
        shutil.rmtree(self.partial / RECORDS, ignore_errors=True)
        _replace(self.folder, self.partial)

    def remarks(self, dataset_id: int) -> list[str]:
        """Returns what the user must know about the finished dataset."""
        remarks = [f"quarantined: {case}: {why}" for case, why in list(self.left_out["quarantined"].items())[:20]]
        if remarks:
            number = len(self.left_out["quarantined"])
            remarks.append(f"{number} cases could not be converted; all reasons are in {self.folder / QUARANTINE}")
        untaught = LabelSetTable.from_dataset_json(read_json(self.folder / "dataset.json")).untaught
        if untaught:
            remarks.append(
                f"no source annotates {', '.join(untaught)}; a network trained on this will not predict them"
            )
        overlapping = [record.overlapping_voxels for record in self.kept if record.overlapping_voxels]
        if overlapping:
            remarks.append(f"masks overlapped in {len(overlapping)} cases, {sum(overlapping)} voxels in all")
        if self.pairs:
            fate = "the source named first was kept" if self.left_out["dropped"] else "they share a fold"
            remarks.append(f"{len(groups_of(self.pairs))} images occur more than once ({self.pairs[0]}, ...); {fate}")
        found = datasets_with_id(dataset_id).values()
        stale = [str(path) for paths in found for path in paths if path != self.folder]
        if stale:
            remarks.append(f"made from the dataset that was replaced, plan and preprocess again: {', '.join(stale)}")
        return remarks

    def _earlier_records(self) -> dict[str, Record]:
        """Prepares the folder to work in, and returns the records of cases that may already be in it."""
        if not self.options.resume:
            shutil.rmtree(self.partial, ignore_errors=True)
        elif not self.partial.is_dir() and (self.folder / MANIFEST).is_file():
            _link_files(self.folder, self.partial)
        if can_restore(self.partial / MANIFEST, self.partial / FINGERPRINTS) and not (self.partial / RECORDS).is_dir():
            fingerprints = read_json(self.partial / FINGERPRINTS)
            for case, content in read_json(self.partial / MANIFEST)["cases"].items():
                write_json(self.partial / RECORDS / f"{case}.json", {**content, "fingerprint": fingerprints[case]})
        self.partial.mkdir(parents=True, exist_ok=True)
        for leftover in self.partial.rglob(".partial-*"):
            leftover.unlink(missing_ok=True)
        return read_records(self.partial)

    def _tidy(self) -> None:
        """Removes every file that does not belong to a case that stays."""
        wanted = {self.partial / name for record in self.kept for name in record.outputs}
        for path in sorted(self.partial.rglob("*"), reverse=True):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
            elif not path.is_dir() and path not in wanted and path.parent.name != RECORDS:
                path.unlink()


def _found(member: Member) -> str:
    """Returns one line about what lies in a source's folder."""
    source, found = member.source, member.found
    number, expected = len(found.cases), source.cases
    line = f"{source.name}: {number} cases in {member.root}"
    details = [f"{len(found.excluded)} excluded as known to be faulty"] if found.excluded else []
    details += [f"{len(found.faulty)} incomplete"] if found.faulty else []
    details += [f"{found.passed_over} without image or label passed over"] if found.passed_over else []
    if expected is not None and number + len(found.excluded) + len(found.faulty) != expected:
        details.append(f"{expected} were published")
    return f"{line} ({', '.join(details)})" if details else line


def _not_told_apart(member: Member, space: LabelSpace) -> list[str]:
    """Names the ids the label space has no place for, so that they are stored as `ignore`."""
    stored = member.source.scheme(space)[1]
    ids = [i for i, found in member.source.labels.items() if stored[i] == space.ignore_id and found != (IGNORE,)]
    names = ", ".join(f"{i} ({' or '.join(member.source.labels[i])})" for i in ids)
    return [f"{member.source.name}: the label space cannot tell {names} apart; stored as ignore"] if ids else []


def _target_folder(dataset_id: int, name: str, options: MergeOptions) -> Path:
    if len(options.space.structures) > MAX_STRUCTURES:
        raise ValueError(f"the label space has {len(options.space.structures)} structures, expected {MAX_STRUCTURES}")
    folder = raw_folder_to_make(dataset_id, name)
    if folder in datasets_with_id(dataset_id).get("nnUNet_raw", []) and not (options.overwrite or options.resume):
        raise ValueError(f"{folder} exists; choose another -d, replace it with --overwrite, or update it with --resume")
    return folder


def _check_case_names(cases: Sequence[str]) -> None:
    twice = sorted({case for case in cases if cases.count(case) > 1}) if len(set(cases)) < len(cases) else []
    if twice:
        raise ValueError(f"case '{twice[0]}' occurs twice; give every source a prefix and a folder of its own")


def _refuse_quarantined(quarantined: dict[str, str], why: str = "stopped by --strict") -> None:
    if quarantined:
        shown = "; ".join(f"{case}: {reason}" for case, reason in list(quarantined.items())[:3])
        raise ValueError(f"{why} ({len(quarantined)} quarantined): {shown}")


def _link_files(folder: Path, copy: Path) -> None:
    """Copies a dataset without copying bytes, where the file system can."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    shutil.copytree(folder, copy, copy_function=link)


def _replace(folder: Path, partial: Path) -> None:
    """Puts the finished dataset in place of an older one, which goes only when the new one is there."""
    previous = folder.with_name(f".previous-{folder.name}")
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        folder.replace(previous)
    partial.replace(folder)
    shutil.rmtree(previous, ignore_errors=True)
