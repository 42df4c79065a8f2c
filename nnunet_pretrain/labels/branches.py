"""Label sets as the branch of one domain sees them.

In a network with one branch per domain, a branch has a channel for background and for every id its domain stores, and
none for other structures. So the same label schemes say what a voxel may be; only the structures without a channel
leave the sets. A domain is a source: all cases whose labels follow the same rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_pretrain.labels.scheme import LabelScheme
from nnunet_pretrain.labels.space import LabelSpace
from nnunet_pretrain.labels.structures import PART_OF
from nnunet_pretrain.labels.table import LabelSetTable


def source_of(entry: Mapping[str, str]) -> str:
    """Returns the source of a case from its entry in dataset.json."""
    return entry.get("source", entry["scheme"])


@dataclass(frozen=True)
class BranchTable(LabelSetTable):
    """The label sets of a dataset, with the channels of one branch.

    Stored ids and scheme indices stay those of the whole dataset. Nothing is known in the schemes of other sources:
    there every id may be every channel.

    Attributes:
        source: The source whose branch it is.
        own_schemes: Indices of the source's schemes.
    """

    source: str
    own_schemes: tuple[int, ...]

    @cached_property
    def stored_ids(self) -> tuple[int, ...]:
        """The stored id of each channel: 0, then every id the source stores except `ignore`."""
        stored = {stored_id for index in self.own_schemes for stored_id in self.schemes[index].sets}
        return tuple(sorted({0, *stored} - {self.space.ignore_id}))

    @cached_property
    def channel_names(self) -> tuple[str, ...]:
        """The name of each channel, background first.

        A channel has the name of its structure; where it also stands for others that are no parts of it, all are named:
        KiTS's kidney is "kidney_left_or_kidney_right".
        """
        return (self.space.names[0], *(self._channel_name(stored_id) for stored_id in self.stored_ids[1:]))

    def _channel_name(self, stored_id: int) -> str:
        name, stored = self.space.names[stored_id], {self.space.names[other] for other in self.stored_ids}
        sets = (self.schemes[index].sets.get(stored_id, ()) for index in self.own_schemes)
        others = {other for label_set in sets for other in label_set} - stored
        also = [other for other in self.space.names if other in others and name not in PART_OF.get(other, ())]
        return "_or_".join([name, *also])

    @cached_property
    def _own(self) -> LabelSetTable:
        """The source's schemes in a label space of its own channels, whose ids are the channels."""
        channel = {
            self.space.names[stored_id]: name
            for stored_id, name in zip(self.stored_ids, self.channel_names, strict=True)
        }
        schemes = []
        for index in self.own_schemes:
            sets = {
                self.stored_ids.index(stored_id): tuple(channel[name] for name in label_set if name in channel)
                for stored_id, label_set in self.schemes[index].sets.items()
                if stored_id != self.space.ignore_id
            }
            schemes.append(LabelScheme(name=self.schemes[index].name, sets=sets))
        return LabelSetTable(LabelSpace(name=self.source, structures=self.channel_names[1:]), tuple(schemes), {})

    def _spread(self, values: npt.NDArray[Any], rest: Any) -> npt.NDArray[Any]:
        """Puts an array (own schemes, own ids, ...) at the places of the dataset's schemes and stored ids."""
        spread = np.full((len(self.schemes), self.num_ids, *values.shape[2:]), rest, dtype=values.dtype)
        for row, index in zip(values, self.own_schemes, strict=True):
            for stored_id in set(self.schemes[index].sets) & set(self.stored_ids):
                spread[index, stored_id] = row[self.stored_ids.index(stored_id)]
        return spread

    @cached_property
    def member(self) -> npt.NDArray[np.bool_]:
        """Membership, shape (schemes, stored ids, channels of the branch); see `LabelSetTable.member`."""
        return self._spread(self._own.member, True)

    @cached_property
    def decidable(self) -> npt.NDArray[np.bool_]:
        """Shape (schemes, stored ids): can an id be scored by overlap, given the branch's channels?"""
        return self._spread(self._own.decidable, False)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Names of the branch's decidable groups."""
        return self._own.groups

    @cached_property
    def group_of_id(self) -> npt.NDArray[np.int64]:
        """Index into `groups`, shape (schemes, stored ids); -1 where an id is not decidable."""
        return self._spread(self._own.group_of_id, -1)


def branch_tables(table: LabelSetTable, source_of_case: Mapping[str, str]) -> dict[str, BranchTable]:
    """Returns the branch of every source of a dataset, in the order of the cases.

    Raises:
        ValueError: A source annotates nothing.
    """
    schemes_of: dict[str, set[int]] = {}
    for case, source in source_of_case.items():
        schemes_of.setdefault(source, set()).add(table.scheme_of_case[case])
    tables = {
        source: BranchTable(table.space, table.schemes, table.scheme_of_case, source, tuple(sorted(indices)))
        for source, indices in schemes_of.items()
    }
    for source, branch in tables.items():
        if len(branch.stored_ids) < 2:
            raise ValueError(f"domain '{source}' stores no structure, so its branch has nothing to learn; leave it out")
    return tables
