"""The task of classifying: AUC, accuracy and calibration over the examples of the unseen cases."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nnunet_pretrain.classification.folds import usable
from nnunet_pretrain.classification.labels import TABLE, Example, classes_by_case, read_examples
from nnunet_pretrain.classification.metrics import DRAWS, METHOD, METRICS, Indices, Values, interval
from nnunet_pretrain.classification.plan_classification import TRAINER, plan_classification
from nnunet_pretrain.files import read_json, sha256_of, written_atomically
from nnunet_pretrain.folders import nnunet_folder
from nnunet_pretrain.planning.settings import PretrainSettings
from nnunet_pretrain.study.arms import Arm
from nnunet_pretrain.study.design import IMAGES_TS, Cases, StudyOptions, known_folds
from nnunet_pretrain.study.statistics import MIN_CASES
from nnunet_pretrain.study.tables import COMMON_NOTES, against_scratch, over_seeds, share, table, with_interval
from nnunet_pretrain.study.task import Cell, Report, Result, Task, Trained

if TYPE_CHECKING:
    from nnunet_pretrain.transfer.plan_transfer import PlannedTransfer, PlanOptions

RUN_COLUMNS = ("arm", "number_of_cases", "seed")


@dataclass(frozen=True)
class _Predictions:
    """What the seeds of a cell predict for the same examples.

    Attributes:
        cases: Case of each example.
        truth: Class of each, shape (examples,).
        probabilities: Shape (seeds, examples, classes).
    """

    cases: tuple[str, ...]
    truth: Indices
    probabilities: Values

    def mean(self, metric: str, chosen: Indices | None = None) -> float:
        """Returns a metric, averaged over seeds, on some of the examples."""
        return float(np.mean(self.by_seed(metric, chosen)))

    def by_seed(self, metric: str, chosen: Indices | None = None) -> list[float]:
        """Returns a metric for every seed, on some of the examples."""
        where = np.arange(len(self.truth)) if chosen is None else chosen
        return [METRICS[metric](self.truth[where], one[where]) for one in self.probabilities]


class Classification(Task):
    """Only the encoder is transferred, and classes of images or lesions are told apart."""

    name = "classification"
    trainer = TRAINER
    metrics = ("AUC", "accuracy", "ECE")
    curve = "AUC_by_epoch"
    curve_label = "AUC of held-out examples"

    def check(self, options: StudyOptions, arms: Sequence[Arm]) -> None:
        """As its base.

        Raises:
            ValueError: imagesTs is to be tested on, or weights are to be loaded by nnU-Net.
        """
        if options.test == IMAGES_TS:
            raise ValueError(f"--test {IMAGES_TS}: the table of classes names training cases only; name a fold")
        if stock := [arm.name for arm in arms if arm.stock_weights]:
            raise ValueError(f"arm '{stock[0]}': nnU-Net cannot load weights into a classifier; leave it out")

    def plan(self, options: StudyOptions, wanted: PlanOptions, report: Report) -> PlannedTransfer:
        """Plans the classifier and its control with `plan_classification`."""
        return plan_classification(wanted, crop_mm=options.crop_mm, report=report)

    def folds(self, dataset: str, plans: Mapping[str, Any]) -> list[dict[str, list[str]]]:
        """Returns the plans' folds, or the dataset's, without cases that have no class."""
        own = PretrainSettings.from_plans(plans).folds
        folds = [fold.model_dump() for fold in own] if own is not None else known_folds(dataset)
        cases = self.classes(dataset)
        return [{part: [case for case in fold[part] if case in cases] for part in ("train", "val")} for fold in folds]

    def classes(self, dataset: str) -> Mapping[str, frozenset[str]]:
        """Returns the classes of every case of the table."""
        return classes_by_case(self._examples(dataset))

    def facts(self, dataset: str, cases: Cases) -> dict[str, Any]:
        """Returns the checksum of the table.

        Raises:
            ValueError: A class is in no labelled case, or the unseen cases have only one.
        """
        if not usable(cases.pool, cases.test, self._examples(dataset)):
            raise ValueError(
                f"{dataset}: every class must be in one of the {len(cases.pool)} labelled cases, and two of them in "
                f"the {len(cases.test)} unseen ones; choose another fold with --test, or leave out less"
            )
        return {"table": sha256_of(_table(dataset))}

    def _examples(self, dataset: str) -> tuple[Example, ...]:
        return read_examples(_table(dataset))

    def scores(self, run: Trained) -> dict[str, Any]:
        """Returns the classes, and class and probabilities of every unseen example."""
        found = read_json(run.fold / "validation" / "summary.json")
        return {"classes": list(found["classes"]), "examples": found["metric_per_case"]}

    def score(self, cell: Cell, metric: str) -> dict[str, Any]:
        """As its base: the mean over seeds, and the bootstrap over cases."""
        found = _predictions(cell, sorted(cell))
        each = found.by_seed(metric)
        estimate = interval(lambda chosen: found.mean(metric, chosen), found.cases, found.truth)
        return {**asdict(estimate), "seed_min": min(each), "seed_max": max(each)}

    def compare(self, cell: Cell, control: Cell, seeds: Sequence[int], metric: str) -> dict[str, Any]:
        """As its base, on the same cases; p of a permutation test that exchanges the arms case by case."""
        own, other = _predictions(cell, seeds), _predictions(control, seeds)
        difference: Callable[[Indices], float] = lambda chosen: (  # noqa: E731
            own.mean(metric, chosen) - other.mean(metric, chosen)
        )
        found = interval(difference, own.cases, own.truth)
        p = exchange_p(own.cases, own.truth, (own.probabilities, other.probabilities), metric)
        return {"difference": asdict(found), "p": p, "can_be_significant": found.cases >= MIN_CASES}

    def details(self, cell: Cell) -> dict[str, Any]:
        """Returns the other metrics, and the number of unseen examples of each class."""
        found = _predictions(cell, sorted(cell))
        classes = next(iter(cell.values()))["scores"]["classes"]
        others = {name: found.mean(name) for name in METRICS if name not in self.metrics}
        return {"others": others, "examples": {name: int((found.truth == i).sum()) for i, name in enumerate(classes)}}

    def write_csv(self, path: Path, results: Iterable[Result]) -> None:
        """Writes one line for every run and unseen example."""
        with written_atomically(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            head: list[str] = []
            for result in results:
                if not head:
                    head = [*RUN_COLUMNS, "case", "lesion", "component", "class"]
                    writer.writerow([*head, *(f"p_{name}" for name in result["scores"]["classes"])])
                for row in result["scores"]["examples"]:
                    what = [row[key] for key in ("case", "lesion", "component", "class")]
                    writer.writerow([*(result[key] for key in RUN_COLUMNS), *what, *row["probabilities"]])

    def tables(self, entries: Sequence[Mapping[str, Any]], nsd_mm: float) -> str:
        """Returns the table of a study, in Markdown."""
        del nsd_mm
        head = ["arm", "labelled cases", "AUC (95 % interval)", "seeds", "accuracy", "ECE"]
        head += ["AUC - scratch", "p", "scratch needs", "epochs to scratch's best"]
        return f"{table(head, [_cells(entry) for entry in entries])}\n\n{_notes(entries)}"

    def panels(self, nsd_mm: float) -> Sequence[tuple[str, str]]:
        """Returns AUC, accuracy and calibration error."""
        del nsd_mm
        return (
            ("AUC", "AUC of unseen cases"),
            ("accuracy", "accuracy of unseen cases"),
            ("ECE", "expected calibration error"),
        )


CLASSIFICATION = Classification()


def exchange_p(
    cases: Sequence[str], truth: Indices, arms: tuple[Values, Values], metric: str, draws: int = DRAWS, seed: int = 0
) -> float:
    """Tests whether two arms differ, by exchanging their predictions for randomly chosen cases.

    If the arms were alike, it would not matter which of them predicted a case (permutation test: Good 2005; for pairs
    of ROC curves Venkatraman & Begg, Biometrika 1996).

    Args:
        cases: Case of each example.
        truth: Class of each, shape (examples,).
        arms: Probabilities of both, shape (seeds, examples, classes) each.
        metric: Name of the metric.
        draws: Random exchanges.
        seed: Seed of the draws.

    Returns:
        The two-sided p; the smallest possible one is 1 / (draws + 1).
    """

    def difference(own: Values, other: Values) -> float:
        value = METRICS[metric]
        return float(np.mean([value(truth, a) - value(truth, b) for a, b in zip(own, other, strict=True)]))

    _, number = np.unique(cases, return_inverse=True)
    rng = np.random.default_rng(seed)
    observed = abs(difference(*arms))
    as_large = 0
    for _ in range(draws):
        swap: npt.NDArray[np.bool_] = (rng.random(number.max() + 1) < 0.5)[number][None, :, None]
        as_large += abs(difference(np.where(swap, *arms), np.where(swap, *arms[::-1]))) >= observed - 1e-12
    return (as_large + 1) / (draws + 1)


def _table(dataset: str) -> Path:
    return nnunet_folder("nnUNet_preprocessed") / dataset / f"{TABLE}.json"


def _predictions(cell: Cell, seeds: Sequence[int]) -> _Predictions:
    classes = cell[seeds[0]]["scores"]["classes"]
    keyed = [
        {(r["case"], str(r["lesion"]), str(r["component"])): r for r in cell[seed]["scores"]["examples"]}
        for seed in seeds
    ]
    keys = sorted(keyed[0])
    probabilities = np.array([[rows[key]["probabilities"] for key in keys] for rows in keyed], dtype=np.float64)
    truth = np.array([classes.index(keyed[0][key]["class"]) for key in keys])
    return _Predictions(tuple(key[0] for key in keys), truth, probabilities)


def _cells(entry: Mapping[str, Any]) -> list[str]:
    auc, rest = with_interval(entry["AUC"]), [with_interval(entry[name]) for name in ("accuracy", "ECE")]
    return [entry["arm"], share(entry), auc, over_seeds(entry, "AUC"), *rest, *against_scratch(entry, "AUC")]


def _notes(entries: Sequence[Mapping[str, Any]]) -> str:
    cases = max(entry["AUC"]["cases"] for entry in entries)
    few = f" With {cases} cases the test cannot reach 0.05; it takes {MIN_CASES}." if cases < MIN_CASES else ""
    counts = ", ".join(f"{count} {name}" for name, count in entries[0]["examples"].items())
    return (
        f"Over {cases} unseen cases ({counts}), mean over seeds. {METHOD} Seeds: lowest and highest of a seed. AUC - "
        f"scratch: on the same cases with the same seeds, p of a permutation test that exchanges the arms' predictions "
        f"case by case.{few} {COMMON_NOTES.format(metric='AUC', curve='AUC')}"
    )
