"""The files of a merged dataset beside its labels: dataset.json, manifest, fingerprints, folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_pretrain import __version__
from nnunet_pretrain.conversion.duplicates import FINGERPRINTS, Pair, groups_of, make_folds
from nnunet_pretrain.conversion.record import Record
from nnunet_pretrain.conversion.source import Source
from nnunet_pretrain.files import write_json
from nnunet_pretrain.labels import DUPLICATES_KEY, SCHEMES_KEY, SPACE_KEY, LabelSetTable, LabelSpace

MANIFEST = "manifest.json"
QUARANTINE = "quarantine.json"
DUPLICATES = "duplicates.json"
SPLITS = "splits_final.json"


def make_dataset_json(
    name: str, space: LabelSpace, records: Sequence[Record], sources: Sequence[Source], pairs: Sequence[Pair]
) -> dict[str, Any]:
    """Returns nnU-Net's dataset.json, extended by label schemes, sources and duplicates.

    Args:
        name: Name of the dataset.
        space: Its label space.
        records: The converted cases.
        sources: Their sources.
        pairs: Duplicates among the cases.

    Raises:
        ValueError: Two cases name different schemes alike.
    """
    schemes: dict[str, dict[str, Any]] = {}
    for record in records:
        scheme_name, sets = record.scheme["name"], record.scheme["sets"]
        if schemes.setdefault(scheme_name, sets) != sets:
            raise ValueError(f"two label schemes are called '{scheme_name}'; give every source a name of its own")
    ignored = any(str(space.ignore_id) in sets for sets in schemes.values())
    content = {
        "name": name,
        "channel_names": {"0": "CT"},
        "labels": space.dataset_labels(ignored),
        "numTraining": len(records),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "NibabelIOWithReorient",
        "converted_by": f"nnunet_pretrain {__version__}",
        SPACE_KEY: space.name,
        SCHEMES_KEY: {scheme: schemes[scheme] for scheme in sorted(schemes)},
        "sources": [_facts(source, records) for source in sources],
        DUPLICATES_KEY: groups_of(pairs),
        "dataset": {
            record.case: {
                "images": [record.image],
                "label": f"labelsTr/{record.case}.nii.gz",
                "source": record.source,
                "scheme": record.scheme["name"],
            }
            for record in records
        },
    }
    LabelSetTable.from_dataset_json(content)
    return content


def _facts(source: Source, records: Sequence[Record]) -> dict[str, Any]:
    facts = {key: getattr(source, key) for key in ("name", "title", "licence", "url", "citation")}
    cases = sum(record.source == source.name for record in records)
    return {**facts, "cases": cases, "notes": [*source.doubts, *source.notes]}


def write_side_files(
    folder: Path, records: Sequence[Record], pairs: Sequence[Pair], left_out: Mapping[str, Mapping[str, str]]
) -> None:
    """Writes manifest, fingerprints, duplicates, folds, and what was quarantined.

    Args:
        folder: The dataset's folder.
        records: The converted cases.
        pairs: Duplicates, dropped ones included.
        left_out: `quarantined`, `excluded`, `dropped`, each case to reason.
    """
    manifest = {record.case: {k: v for k, v in record.as_dict().items() if k != "fingerprint"} for record in records}
    write_json(folder / MANIFEST, {"converted_by": f"nnunet_pretrain {__version__}", "cases": manifest, **left_out})
    write_json(folder / FINGERPRINTS, {record.case: record.fingerprint for record in records})
    write_json(folder / DUPLICATES, [vars(pair) for pair in pairs])
    kept = {record.case: record.source for record in records}
    folds = make_folds(kept, [[c for c in group if c in kept] for group in groups_of(pairs)])
    if folds:
        write_json(folder / SPLITS, folds)
    if left_out["quarantined"]:
        write_json(folder / QUARANTINE, dict(left_out["quarantined"]))
