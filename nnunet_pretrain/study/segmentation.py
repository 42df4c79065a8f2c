"""The task of segmenting: Dice, surface Dice and false positives of every structure in every unseen case."""

from __future__ import annotations

import csv
import multiprocessing
import signal
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_pretrain.files import read_json, written_atomically
from nnunet_pretrain.folders import nnunet_folder
from nnunet_pretrain.study.design import IMAGES_TS, StudyOptions
from nnunet_pretrain.study.scores import CaseToScore, Score, outputs_of, score_files
from nnunet_pretrain.study.statistics import MIN_CASES, Values, compare, estimate, spread_over_seeds
from nnunet_pretrain.study.tables import COMMON_NOTES, against_scratch, over_seeds, share, table, with_interval
from nnunet_pretrain.study.task import Cell, Report, Result, Task, Trained

if TYPE_CHECKING:
    from nnunet_pretrain.transfer.plan_transfer import PlannedTransfer, PlanOptions

COLUMNS = ("arm", "number_of_cases", "seed", "case", "output")
MEASURES = ("Dice", "NSD", "reference_ml", "FP_ml", "false_positive")


class Segmentation(Task):
    """The whole network is transferred, and every structure of a case is scored."""

    name = "segmentation"
    trainer = "nnUNetTrainerTransfer"
    metrics = ("Dice", "NSD")
    curve = "pseudo_dice"
    curve_label = "pseudo Dice"

    def plan(self, options: StudyOptions, wanted: PlanOptions, report: Report) -> PlannedTransfer:
        """Plans the transfer and its control with `plan_transfer`."""
        from nnunet_pretrain.transfer.plan_transfer import plan_transfer

        return plan_transfer(wanted, report=report)

    def scores(self, run: Trained) -> dict[str, dict[str, Score]]:
        """Scores a run on the unseen cases; returns case to output to scores (`score_case`)."""
        plans = read_json(nnunet_folder("nnUNet_preprocessed") / run.dataset / f"{run.plans_name}.json")
        raw = nnunet_folder("nnUNet_raw") / run.dataset
        preprocessed = nnunet_folder("nnUNet_preprocessed") / run.dataset
        dataset_json = read_json(raw / "dataset.json")
        outside = run.options.test == IMAGES_TS
        references = raw / "labelsTs" if outside else preprocessed / "gt_segmentations"
        predictions = run.fold / (IMAGES_TS if outside else "validation")
        ending, outputs = dataset_json["file_ending"], outputs_of(dataset_json)
        work = [
            CaseToScore(
                name=case,
                reference=references / f"{case}{ending}",
                prediction=predictions / f"{case}{ending}",
                outputs=outputs,
                nsd_mm=run.options.nsd_mm,
                reader=plans["image_reader_writer"],
            )
            for case in run.cases.test
        ]
        workers = min(run.options.num_processes, len(work))
        if workers == 1:
            return dict(map(score_files, work))
        with ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=signal.signal,
            initargs=(signal.SIGINT, signal.SIG_IGN),  # Ctrl-C is for the main process
        ) as pool:
            return dict(pool.map(score_files, work))

    def score(self, cell: Cell, metric: str, output: str | None = None) -> dict[str, Any]:
        """As its base, of one output or of the mean over all."""
        values = values_of(cell, metric, sorted(cell), output)
        low, high = spread_over_seeds(values)
        return {**asdict(estimate(values)), "seed_min": low, "seed_max": high}

    def compare(self, cell: Cell, control: Cell, seeds: Sequence[int], metric: str) -> dict[str, Any]:
        """As its base, paired by case and seed."""
        return asdict(compare(values_of(cell, metric, seeds), values_of(control, metric, seeds)))

    def details(self, cell: Cell) -> dict[str, Any]:
        """Returns false positives, and the metrics of every output."""
        names = next(iter(next(iter(cell.values()))["scores"].values()))
        outputs = {
            name: {
                **{metric: self.score(cell, metric, name) for metric in self.metrics},
                "false_positives": false_positives(cell, name),
            }
            for name in names
        }
        return {"false_positives": false_positives(cell), "outputs": outputs}

    def write_csv(self, path: Path, results: Iterable[Result]) -> None:
        """Writes one line for every run, test case and output; empty cells where there is no value."""
        with written_atomically(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*COLUMNS, *MEASURES])
            for result in results:
                run = [result[key] for key in COLUMNS[:3]]
                for case, outputs in result["scores"].items():
                    for output, scores in outputs.items():
                        writer.writerow([*run, case, output, *(scores[measure] for measure in MEASURES)])

    def tables(self, entries: Sequence[Mapping[str, Any]], nsd_mm: float) -> str:
        """Returns the tables of a study, in Markdown."""
        outputs = list(entries[0]["outputs"])
        measures = table(
            [
                "arm", "labelled cases", "Dice (95 % interval)", "seeds", f"NSD at {nsd_mm:g} mm", "false positives",
                "Dice - scratch", "p", "scratch needs", "epochs to scratch's best",
            ],
            [_cells(entry) for entry in entries],
        )  # fmt: skip
        by_output = table(
            ["arm", "labelled cases", *(f"Dice {name}" for name in outputs)],
            [[e["arm"], share(e), *(with_interval(e["outputs"][name]["Dice"]) for name in outputs)] for e in entries],
        )
        return "\n\n".join([measures, by_output, _notes(entries)])

    def panels(self, nsd_mm: float) -> Sequence[tuple[str, str]]:
        """Returns Dice and surface Dice."""
        return (("Dice", "Dice of unseen cases"), ("NSD", f"surface Dice at {nsd_mm:g} mm"))


SEGMENTATION = Segmentation()


def values_of(cell: Cell, metric: str, seeds: Sequence[int], output: str | None = None) -> Values:
    """Returns one value per seed and case, NaN where there is none.

    Args:
        cell: Runs of one arm with one number of cases.
        metric: `Dice` or `NSD`.
        seeds: Which seeds, in this order.
        output: One output, or None for the mean over the outputs that have a value.

    Returns:
        Array of shape (seeds, test cases).
    """

    def value(scores: Mapping[str, Mapping[str, Any]]) -> float:
        chosen = [scores[output]] if output else list(scores.values())
        found = [score[metric] for score in chosen if score[metric] is not None]
        return float(np.mean(found)) if found else float("nan")

    return np.array([[value(scores) for _, scores in sorted(cell[s]["scores"].items())] for s in seeds])


def false_positives(cell: Cell, output: str | None = None) -> dict[str, float | int | None]:
    """Returns how often something is predicted in a case without the structure, over cases, outputs and seeds."""
    found = [
        score
        for result in cell.values()
        for scores in result["scores"].values()
        for name, score in scores.items()
        if output in (None, name) and score["false_positive"] is not None
    ]
    return {
        "without": len(found),
        "rate": float(np.mean([score["false_positive"] for score in found])) if found else None,
        "ml": float(np.mean([score["FP_ml"] for score in found])) if found else None,
    }


def _cells(entry: Mapping[str, Any]) -> list[str]:
    wrong = entry["false_positives"]
    return [
        entry["arm"],
        share(entry),
        with_interval(entry["Dice"]),
        over_seeds(entry, "Dice"),
        with_interval(entry["NSD"]),
        "no such case" if wrong["rate"] is None else f"{wrong['rate']:.0%} of {wrong['without']}, {wrong['ml']:.1f} ml",
        *against_scratch(entry, "Dice"),
    ]


def _notes(entries: Sequence[Mapping[str, Any]]) -> str:
    cases = max(entry["Dice"]["cases"] for entry in entries)
    few = f" With {cases} cases the test cannot reach 0.05; it takes {MIN_CASES}." if cases < MIN_CASES else ""
    return (
        f"Dice and NSD: mean over structures of a case, over seeds, then over {cases} unseen cases; a structure absent "
        f"from reference and prediction does not count, one that is absent from either counts 0. Intervals: bootstrap "
        f"over cases. Seeds: lowest and highest mean of a seed. False positives: share of cases without the structure "
        f"in which it is predicted. Dice - scratch: paired by case and seed, p of Wilcoxon's signed-rank test over "
        f"cases.{few} {COMMON_NOTES.format(metric='Dice', curve='pseudo Dice')}"
    )
