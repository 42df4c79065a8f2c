"""What a study may train and score: a task names the trainer, plans it, and knows its metrics and tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_pretrain.study.arms import Arm
    from nnunet_pretrain.study.design import Cases, StudyOptions
    from nnunet_pretrain.transfer.plan_transfer import PlannedTransfer, PlanOptions

Result = Mapping[str, Any]
Cell = dict[int, Result]
"""Seed to result: the runs of one arm with one number of labelled cases."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """A run that is trained and not yet scored.

    Attributes:
        options: What the user asked for.
        dataset: Name of the target.
        cases: Who is what.
        plans_name: Name of the run's plans.
        fold: Where nnU-Net keeps the run.
    """

    options: StudyOptions
    dataset: str
    cases: Cases
    plans_name: str
    fold: Path


class Task(ABC):
    """One kind of training on a target.

    Attributes:
        name: What `--task` calls it.
        trainer: Name of the trainer.
        metrics: What is estimated and compared with the control; the first one decides.
        curve: Entry of a result that holds the metric per epoch, which nnU-Net logs as pseudo Dice.
        curve_label: What it is called in the figure.
    """

    name: str
    trainer: str
    metrics: tuple[str, ...]
    curve: str
    curve_label: str

    def check(self, options: StudyOptions, arms: Sequence[Arm]) -> None:
        """Refuses options and arms that the task does not have.

        Raises:
            ValueError: One of them is not possible.
        """
        del options, arms

    @abstractmethod
    def plan(self, options: StudyOptions, wanted: PlanOptions, report: Report) -> PlannedTransfer:
        """Plans the transfer and its control."""

    def folds(self, dataset: str, plans: Mapping[str, Any]) -> list[dict[str, list[str]]] | None:
        """Returns the folds to test on, in the form of splits_final.json; None means the dataset's own."""
        del dataset, plans
        return None

    def classes(self, dataset: str) -> Mapping[str, frozenset[str]] | None:
        """Returns the classes of every case, all of which every subset keeps; None means that there are none."""
        del dataset
        return None

    def facts(self, dataset: str, cases: Cases) -> dict[str, Any]:
        """Returns what else must not change between the calls of one study.

        Raises:
            ValueError: These cases cannot be trained and tested on.
        """
        del dataset, cases
        return {}

    @abstractmethod
    def scores(self, run: Trained) -> Any:
        """Scores a run on the unseen cases; returns plain values for JSON."""

    @abstractmethod
    def score(self, cell: Cell, metric: str) -> dict[str, Any]:
        """Returns mean, low, high (95 % interval), cases, seed_min and seed_max of a metric."""

    @abstractmethod
    def compare(self, cell: Cell, control: Cell, seeds: Sequence[int], metric: str) -> dict[str, Any]:
        """Returns difference (mean, low, high, cases), p and can_be_significant of an arm against the control."""

    @abstractmethod
    def details(self, cell: Cell) -> dict[str, Any]:
        """Returns what a report says of a cell beside the metrics."""

    @abstractmethod
    def write_csv(self, path: Path, results: Iterable[Result]) -> None:
        """Writes the scores of all runs, one line for each thing that was scored."""

    @abstractmethod
    def tables(self, entries: Sequence[Mapping[str, Any]], nsd_mm: float) -> str:
        """Returns the tables in Markdown, from what `summarise` returned."""

    @abstractmethod
    def panels(self, nsd_mm: float) -> Sequence[tuple[str, str]]:
        """Returns the metrics the figure shows over labelled cases, with the names of their axes."""
