"""Trainer part: supervision by label sets, found for each case through the batch's keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.helpers import dummy_context
from torch import Tensor, nn

from nnunet_pretrain.files import write_json
from nnunet_pretrain.labels import DUPLICATES_KEY, LabelSetTable
from nnunet_pretrain.labels.branches import source_of
from nnunet_pretrain.planning.settings import PretrainSettings
from nnunet_pretrain.training.label_set_loss import LabelSetLoss
from nnunet_pretrain.training.label_set_metrics import COUNTS, evaluate_folder, hard_counts_by_sample
from nnunet_pretrain.training.label_sets import LabelSets
from nnunet_pretrain.training.mirroring import MirrorLeftRight
from nnunet_pretrain.training.preflight import check_dataset, check_labels, check_preprocessed, check_stored_ids

MAX_SCHEMES_IN_LOG = 20


def hold_out(
    cases: Sequence[str], entries: Mapping[str, Any], share: float, duplicates: Sequence[Sequence[str]] = ()
) -> tuple[list[str], list[str]]:
    """Splits cases into training and validation, source by source and always in the same way.

    Args:
        cases: Case names.
        entries: The `dataset` entry of dataset.json, which names each case's source.
        share: Share of each source to hold out; a source with more than one case gives at least one.
        duplicates: Groups of cases with the same image; a group is held out as a whole.

    Returns:
        Training and validation cases. Without any held-out case, validation is on the training cases, as in nnU-Net.
    """
    by_source: dict[str, list[str]] = {}
    for case in cases:
        by_source.setdefault(source_of(entries[case]), []).append(case)
    held_out: set[str] = set()
    for members in by_source.values():
        number = max(1, round(share * len(members))) if share and len(members) > 1 else 0
        held_out.update(np.random.default_rng(12345).choice(members, number, replace=False).tolist())
    for group in duplicates:
        if held_out & set(group):
            held_out |= set(group) & set(cases)
    training = [case for case in cases if case not in held_out]
    return training, sorted(held_out) or training


class LabelSetSupervision(nnUNetTrainer):
    """Trains and validates on what each case's source annotates, and on nothing else."""

    settings: PretrainSettings
    _mirror: MirrorLeftRight | None = None

    @cached_property
    def label_sets(self) -> LabelSetTable:
        """The dataset's label sets; a dataset without schemes is refused here, when the trainer is initialised."""
        return LabelSetTable.from_dataset_json(self.dataset_json)

    @cached_property
    def source_of_case(self) -> dict[str, str]:
        """Source of each case."""
        return {case: source_of(entry) for case, entry in self.dataset_json["dataset"].items()}

    @cached_property
    def scored(self) -> tuple[str, ...]:
        """What pseudo Dice is given for: the decidable groups of all sources."""
        return self.label_sets.groups

    @cached_property
    def scored_by_source(self) -> dict[str, set[int]]:
        """The groups each source can decide, in at least one of its cases, as indices into `scored`."""
        decided: dict[str, set[int]] = {source: set() for source in self.source_of_case.values()}
        for source, scheme in {(self.source_of_case[c], s) for c, s in self.label_sets.scheme_of_case.items()}:
            decided[source] |= set(self.label_sets.group_of_id[scheme].tolist()) - {-1}
        return decided

    @cached_property
    def _sets(self) -> LabelSets:
        return LabelSets(self.label_sets).to(self.device)

    def _build_loss(self) -> nn.Module:
        """Puts the label-set loss into nnU-Net's deep-supervision wrapper."""
        return self.supervised(super()._build_loss(), self._sets)

    def supervised(self, stock: nn.Module, sets: LabelSets, ddp: bool | None = None) -> nn.Module:
        """Returns the label-set loss in the place of nnU-Net's.

        Args:
            stock: What nnU-Net's trainer would use.
            sets: The label sets.
            ddp: Whether the loss is that of all processes together; None: if there are several.
        """
        training = self.settings.training
        loss = LabelSetLoss(
            sets,
            batch_dice=self.configuration_manager.batch_dice,
            ddp=self.is_ddp if ddp is None else ddp,
            weight_ce=training.weight_ce,
            weight_dice=training.weight_dice,
            compile_it=self._do_i_compile(),
        )
        return DeepSupervisionWrapper(loss, stock.weight_factors) if isinstance(stock, DeepSupervisionWrapper) else loss

    def do_split(self) -> tuple[list[str], list[str]]:
        """As nnU-Net; fold `all` holds out a small share of every source, so that validation sees unseen cases."""
        training, validation = super().do_split()
        self.label_sets.scheme_indices([*training, *validation])  # refuses cases without a scheme before the first step
        if self.fold != "all":
            return training, validation
        duplicates = self.dataset_json.get(DUPLICATES_KEY, ())
        share = self.settings.training.val_share
        return hold_out(sorted(training), self.dataset_json["dataset"], share, duplicates)

    def on_train_start(self) -> None:
        """As nnU-Net, after checks of the data; the log says what is scored, and which case follows which scheme."""
        if self.local_rank == 0:
            self._check_data()
        super().on_train_start()
        self.print_to_log_file("Pseudo dice is given for:", ", ".join(self.scored))
        self.log_labels()

    def log_labels(self) -> None:
        """Writes into the log which case follows which scheme."""
        table = self.label_sets
        if table.untaught:
            self.print_to_log_file("No source annotates these, they will not be predicted:", ", ".join(table.untaught))
        cases = Counter(table.scheme_of_case.values()).most_common()
        for index, number in cases[:MAX_SCHEMES_IN_LOG]:
            scheme = table.schemes[index]
            self.print_to_log_file(
                f"Label scheme {scheme.name}: {number} cases, background may hide {scheme.sets[0][1:]}"
            )
        if len(cases) > MAX_SCHEMES_IN_LOG:
            self.print_to_log_file(f"... and {len(cases) - MAX_SCHEMES_IN_LOG} rarer label schemes, see dataset.json")

    def _check_data(self) -> None:
        base, folder = Path(self.preprocessed_dataset_folder_base), Path(self.preprocessed_dataset_folder)
        plans_name = self.plans_manager.plans_name
        check_dataset(self.dataset_json, plans_name, base)
        dataset_class = self.dataset_class or infer_dataset_class(str(folder))
        found, expected = dataset_class.get_identifiers(str(folder)), sorted(self.dataset_json["dataset"])
        check_preprocessed(folder, found, expected, plans_name)
        if self.settings.domains is None:  # cases of domains have labels of their own, and checks of their own
            check_labels(folder, expected, self.dataset_json, plans_name)
        check_stored_ids(
            dataset_class(str(folder), expected), expected, self.label_sets, base / f"{folder.name}_checked.json"
        )

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(  # noqa: N802
        self,
    ) -> tuple[Any, Any, Any, tuple[int, ...] | None]:
        """As nnU-Net; also readies left-right mirroring with swapped ids, if the settings ask for it.

        Raises:
            ValueError: Mirroring with swapped ids is asked for beside plain left-right mirroring.
        """
        result = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        axis = self.left_right_axis()
        if self.settings.training.left_right_mirroring == "swap" and axis is not None:
            if axis in (result[3] or ()):
                raise ValueError(
                    f"mirror_axes {result[3]} hold the left-right axis {axis}, but left_right_mirroring is 'swap'; "
                    f"leave that axis out of mirror_axes in plans '{self.plans_manager.plans_name}'"
                )
            self._mirror = MirrorLeftRight(self.label_sets, axis).to(self.device)
        return result

    def train_step(self, batch: dict) -> dict:
        """As nnU-Net, on targets that carry their case's label scheme."""
        return super().train_step(self._with_schemes(batch, mirror=True))

    def validation_step(self, batch: dict) -> dict:
        """Returns loss and, per decidable group, true positives, false positives and false negatives.

        The same counts per sample are in `tp_by_sample`, `fp_by_sample` and `fn_by_sample`, shape (B, G).
        """
        batch = self._with_schemes(batch, mirror=False)
        data, target = batch["data"].to(self.device, non_blocking=True), batch["target"]
        with torch.autocast(self.device.type) if self.device.type == "cuda" else dummy_context():
            output = self.network(data)
            loss = self.loss(output, target)
        if self.enable_deep_supervision:
            output, target = output[0], target[0]
        counts = self.counts(output.argmax(1).flatten(1), target.flatten(1), batch["keys"])
        by_sample = {f"{name}_by_sample": values.cpu().numpy() for name, values in zip(COUNTS, counts, strict=True)}
        summed = {f"{name}_hard": by_sample[f"{name}_by_sample"].sum(0) for name in COUNTS}
        return {"loss": loss.detach().cpu().numpy(), **summed, **by_sample}

    def counts(self, prediction_BV: Tensor, rows_BV: Tensor, cases: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns true positives, false positives and false negatives, each (B, len(scored)), of the named cases."""
        return hard_counts_by_sample(self._sets, prediction_BV, rows_BV)

    def _with_schemes(self, batch: dict, mirror: bool) -> dict[str, Any]:
        schemes = torch.from_numpy(self.label_sets.scheme_indices(batch["keys"])).to(self.device)
        data, targets = batch["data"], batch["target"]
        targets = [t.to(self.device, non_blocking=True) for t in (targets if isinstance(targets, list) else [targets])]
        if mirror and self._mirror is not None:
            data, targets = self._mirror(data.to(self.device, non_blocking=True), targets, schemes)
        targets = [self._sets.encode(target, schemes) for target in targets]
        return {**batch, "data": data, "target": targets if isinstance(batch["target"], list) else targets[0]}

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """As nnU-Net, then replaces summary.json by one on decidable groups; nnU-Net's own is kept beside it."""
        super().perform_actual_validation(save_probabilities)
        if self.local_rank != 0:
            return
        folder = Path(self.output_folder) / "validation"
        (folder / "summary.json").replace(folder / "summary_unannotated_as_absent.json")
        references = Path(self.preprocessed_dataset_folder_base) / "gt_segmentations"
        summary = evaluate_folder(
            self.label_sets,
            self.do_split()[1],
            references,
            folder,
            self.dataset_json["file_ending"],
            sources=self.source_of_case,
        )
        write_json(folder / "summary.json", summary)
        self.print_to_log_file("The mean above takes structures a source does not annotate for absent.")
        self.report_validation(summary)

    def report_validation(self, summary: dict[str, Any]) -> None:
        """Writes the final validation into the log, source by source."""
        for source, found in summary["per_source"].items():
            self.print_to_log_file(f"Validation on {source}, {found['cases']} cases:")
            for group, metrics in found["mean"].items():
                overlap = f"Dice {metrics['Dice']:.4f}, NSD at {summary['nsd_tolerance_mm']:g} mm {metrics['NSD']:.4f}"
                self.print_to_log_file(
                    f"  {group}: {overlap if np.isfinite(metrics['Dice']) else 'not present'}, "
                    f"false positives {metrics['FP_ml']:.1f} ml a case"
                )
        self.print_to_log_file(f"Mean Dice of decidable groups: {summary['foreground_mean'].get('Dice', np.nan):.4f}")
