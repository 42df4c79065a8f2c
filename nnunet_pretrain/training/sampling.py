"""Trainer part: which cases are drawn, and which structure a foreground patch is centred on.

A case of a source with n cases is drawn with probability proportional to n ** -alpha (alpha 0.5 in MultiTalent, Ulrich
et al., MICCAI 2023): small sources are seen more often than their size says, large ones more often than others.

nnU-Net's loader draws cases uniformly from a list, and for a foreground patch a class uniformly from those present in
the case. Both stay its own code: the list repeats cases, and the case it loads shows one class only, drawn so that
structures annotated in few cases are centred on more often than those annotated nearly everywhere.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from nnunet_pretrain.labels import LabelSetTable
from nnunet_pretrain.planning.settings import PretrainSettings
from nnunet_pretrain.training.waiting import WaitingTime

MAX_LIST = 200_000
REPEATS = 20


def case_weights(cases: Sequence[str], source_of_case: Mapping[str, str], alpha: float) -> npt.NDArray[np.float64]:
    """Returns the probability of drawing each case, shape (cases,); their sum is 1."""
    sizes = Counter(source_of_case[case] for case in cases)
    weights = np.array([sizes[source_of_case[case]] ** -alpha for case in cases], dtype=np.float64)
    return weights / weights.sum()


def repeated(cases: Sequence[str], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.str_]:
    """Returns a list from which a uniform draw gives each case with its probability, to within a few percent.

    Args:
        cases: Case names.
        weights: Probability of each, shape (cases,).

    Returns:
        Case names, each at least once; the rarest about `REPEATS` times unless the list would exceed `MAX_LIST`.
    """
    times = weights / weights.min()
    times *= max(1.0, min(REPEATS, MAX_LIST / times.sum())) if np.ptp(weights) > 0 else 1.0
    return np.repeat(np.array(cases), np.maximum(1, np.rint(times).astype(int)))


def structure_weights(table: LabelSetTable, cases: Sequence[str], weights: npt.NDArray[np.float64]) -> dict[int, float]:
    """Returns how much more often than a structure annotated everywhere each stored id is to be centred on.

    The weight of an id is the inverse of the probability that the scheme of a drawn case stores it.
    """
    share: defaultdict[int, float] = defaultdict(float)
    for case, weight in zip(cases, weights, strict=True):
        for stored_id in table.schemes[table.scheme_of_case[case]].sets:
            share[stored_id] += float(weight)
    return {stored_id: 1 / value for stored_id, value in share.items() if 0 < stored_id < table.space.ignore_id}


class BalancedCases:
    """A preprocessed dataset whose list of identifiers, and whose foreground, nnU-Net's loader may draw uniformly from.

    Args:
        dataset: nnU-Net's dataset of the cases.
        identifiers: Case names, repeated as often as they are to be drawn.
        structures: Weight of each stored id for foreground patches, or None to keep all that are present.
    """

    def __init__(
        self,
        dataset: nnUNetBaseDataset,
        identifiers: npt.NDArray[np.str_],
        structures: Mapping[int, float] | None = None,
    ) -> None:
        self.dataset, self.identifiers, self.structures = dataset, identifiers, structures

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """As nnU-Net's dataset; of the structures' locations, only those of one drawn structure are handed on.

        The key for all annotated voxels, which nnU-Net needs for datasets with an ignore label, stays.
        """
        data, seg, seg_previous, properties = self.dataset.load_case(identifier)
        if self.structures is None:
            return data, seg, seg_previous, properties
        locations = properties["class_locations"]
        present = [key for key in locations if key in self.structures and len(locations[key])]
        if present:
            weights = np.array([self.structures[key] for key in present])
            chosen = present[np.random.choice(len(present), p=weights / weights.sum())]
            kept = {key: found for key, found in locations.items() if key == chosen or isinstance(key, tuple)}
            properties = {**properties, "class_locations": kept}
        return data, seg, seg_previous, properties


class BalancedSampling(WaitingTime):
    """Draws cases and structures as the settings say, and counts what was drawn."""

    settings: PretrainSettings
    label_sets: LabelSetTable
    source_of_case: Mapping[str, str]

    drawn: Counter[str]
    drawn_in_epoch: Counter[str]

    def get_tr_and_val_datasets(self) -> tuple[BalancedCases, BalancedCases]:
        """As nnU-Net; validation batches come from all sources alike, so that each has a pseudo-Dice."""
        training, validation = super().get_tr_and_val_datasets()
        settings = self.settings.training
        return (
            self._balanced(training, settings.sampling_alpha, settings.balance_structures),
            self._balanced(validation, 1.0, settings.balance_structures),
        )

    def _balanced(self, dataset: nnUNetBaseDataset, alpha: float, balance_structures: bool) -> BalancedCases:
        cases = sorted(dataset.identifiers)
        weights = case_weights(cases, self.source_of_case, alpha)
        structures = structure_weights(self.label_sets, cases, weights) if balance_structures else None
        return BalancedCases(dataset, repeated(cases, weights), structures)

    def on_train_epoch_start(self) -> None:
        """As nnU-Net; also starts the epoch's counters."""
        super().on_train_epoch_start()
        self.drawn_in_epoch = Counter()

    def train_step(self, batch: dict) -> dict:
        """As nnU-Net; also counts cases."""
        self.drawn_in_epoch.update(str(case) for case in batch["keys"])
        return super().train_step(batch)
