"""Label-set table: every scheme of a merged dataset as arrays, for losses and metrics that know no special cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_pretrain.labels.scheme import LabelScheme
from nnunet_pretrain.labels.space import LabelSpace

SCHEMES_KEY = "label_schemes"
SPACE_KEY = "label_space"
DUPLICATES_KEY = "duplicate_groups"


@dataclass(frozen=True)
class LabelSetTable:
    """The label sets of all schemes of a dataset, and which case follows which scheme.

    A *row* numbers a (scheme, stored id) pair: row = scheme index * `num_ids` + stored id.

    Attributes:
        space: The label space.
        schemes: All schemes, in a fixed order.
        scheme_of_case: Case identifier to scheme index.
    """

    space: LabelSpace
    schemes: tuple[LabelScheme, ...]
    scheme_of_case: Mapping[str, int]

    @property
    def num_ids(self) -> int:
        """Number of stored ids a scheme can have: background, structures and ignore."""
        return self.space.ignore_id + 1

    @cached_property
    def untaught(self) -> tuple[str, ...]:
        """Structures under whose id no scheme stores a voxel, so that nothing tells them from their neighbours.

        Were a liver tumour allowed inside every liver and stored nowhere, "tumour" would be as right as "liver"
        everywhere, and a network would be free to call the whole liver so. Untaught structures are left out of all
        sets; the network learns not to predict them.
        """
        taught = {0, *(stored_id for scheme in self.schemes for stored_id in scheme.sets)}
        return tuple(name for stored_id, name in enumerate(self.space.names) if stored_id not in taught)

    @cached_property
    def member(self) -> npt.NDArray[np.bool_]:
        """Membership, shape (schemes, stored ids, channels): may a voxel with this id be this structure?

        Two exceptions to what the schemes say keep the answer unique. Untaught structures are in no set. And a
        structure that every scheme's background may hide (annotated in part only, by all who annotate it) would be as
        right as background everywhere; where it is annotated, background excludes it after all.

        The set of `ignore` is everything, and so is that of ids a scheme does not list, which cannot be stored: they
        teach nothing.
        """
        member = np.ones((len(self.schemes), self.num_ids, len(self.space.names)), dtype=bool)
        for scheme_sets, scheme in zip(member, self.schemes, strict=True):
            for stored_id, label_set in scheme.sets.items():
                if stored_id != self.space.ignore_id:
                    scheme_sets[stored_id] = np.isin(self.space.names, sorted(set(label_set) - set(self.untaught)))
        never_excluded = [i for i in range(1, self.space.ignore_id) if member[:, 0, i].all()]
        for scheme_sets, scheme in zip(member, self.schemes, strict=True):
            scheme_sets[0, [i for i in never_excluded if i in scheme.sets]] = False
        return member

    @cached_property
    def decidable(self) -> npt.NDArray[np.bool_]:
        """Shape (schemes, stored ids): can a foreground id be scored by overlap in cases of the scheme?

        It can if its label set shares nothing with background's set, and holds a structure that no other id of the
        scheme may be. Sets disjoint from all others fulfil both. What two foreground sets may share, such as a kidney
        tumour of unknown side between the left and the right kidney, is scored for the id the voxel carries
        (see `nnunet_pretrain.training.label_set_loss`).
        """
        decidable = np.zeros((len(self.schemes), self.num_ids), dtype=bool)
        for index, scheme in enumerate(self.schemes):
            for stored_id in scheme.sets:
                if stored_id in (0, self.space.ignore_id):
                    continue
                own = self.member[index, stored_id]
                others = [i for i in scheme.sets if i not in (stored_id, self.space.ignore_id)]
                exclusive = own & ~self.member[index, others].any(axis=0)
                decidable[index, stored_id] = exclusive.any() and not (own & self.member[index, 0]).any()
        return decidable

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Names of the decidable groups of all schemes: one per different (stored id, label set)."""
        return tuple(self._group_index)

    @cached_property
    def group_of_id(self) -> npt.NDArray[np.int64]:
        """Index into `groups`, shape (schemes, stored ids); -1 where an id is not decidable."""
        group = np.full(self.decidable.shape, -1, dtype=np.int64)
        for scheme, stored_id in zip(*np.nonzero(self.decidable), strict=True):
            group[scheme, stored_id] = self._group_index[self._group_name(scheme, stored_id)]
        return group

    @cached_property
    def _group_index(self) -> dict[str, int]:
        pairs = sorted(zip(*np.nonzero(self.decidable), strict=True), key=lambda pair: (pair[1], pair[0]))
        return {name: i for i, name in enumerate(dict.fromkeys(self._group_name(*pair) for pair in pairs))}

    def _group_name(self, scheme: int, stored_id: int) -> str:
        others = [int(i) for i in np.flatnonzero(self.member[scheme, stored_id]) if i != stored_id]
        return "+".join(self.space.names[i] for i in (int(stored_id), *others))

    def scheme_indices(self, cases: Sequence[str]) -> npt.NDArray[np.int64]:
        """Returns the scheme index of each case of a batch.

        Raises:
            ValueError: A case has no scheme.
        """
        try:
            return np.array([self.scheme_of_case[str(case)] for case in cases], dtype=np.int64)
        except KeyError as missing:
            raise ValueError(
                f"case {missing} has no label scheme in dataset.json; run `nnunet_pretrain merge` again and "
                f"preprocess the dataset anew"
            ) from None

    @classmethod
    def from_dataset_json(cls, dataset_json: Mapping[str, Any]) -> LabelSetTable:
        """Reads label space, schemes and the scheme of each case from a merged dataset's dataset.json.

        Raises:
            ValueError: The dataset was not made by `nnunet_pretrain merge`, or its entries contradict each other.
        """
        if SCHEMES_KEY not in dataset_json or "dataset" not in dataset_json:
            raise ValueError(
                f"dataset.json has no '{SCHEMES_KEY}' with a 'scheme' per case; "
                f"make the dataset with `nnunet_pretrain merge`, or train it with nnUNetTrainer"
            )
        space = LabelSpace.from_dataset_labels(dataset_json["labels"], dataset_json.get(SPACE_KEY, "dataset"))
        schemes = [LabelScheme(name=name, sets=sets) for name, sets in dataset_json[SCHEMES_KEY].items()]
        index = {scheme.name: i for i, scheme in enumerate(schemes)}
        for scheme in schemes:
            scheme.check(space)
        scheme_of_case = {}
        for case, entry in dataset_json["dataset"].items():
            if entry.get("scheme") not in index:
                raise ValueError(
                    f"case '{case}' names label scheme {entry.get('scheme')!r}, expected one of {list(index)}"
                )
            scheme_of_case[case] = index[entry["scheme"]]
        return cls(space=space, schemes=tuple(schemes), scheme_of_case=scheme_of_case)
