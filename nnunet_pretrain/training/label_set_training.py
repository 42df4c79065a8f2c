"""Trainer part: supervision by label sets, found for each case through the batch's keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.helpers import dummy_context
from torch import Tensor, nn

from nnunet_pretrain.files import write_json
from nnunet_pretrain.labels import DUPLICATES_KEY, LabelSetTable
from nnunet_pretrain.planning.settings import PretrainSettings
from nnunet_pretrain.training.label_set_loss import LabelSetLoss, LabelSets
from nnunet_pretrain.training.label_set_metrics import evaluate_folder, hard_counts

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
        by_source.setdefault(entries[case].get("source", entries[case]["scheme"]), []).append(case)
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

    @cached_property
    def label_sets(self) -> LabelSetTable:
        """The dataset's label sets; a dataset without schemes is refused here, when the trainer is initialised."""
        return LabelSetTable.from_dataset_json(self.dataset_json)

    @cached_property
    def _sets(self) -> LabelSets:
        return LabelSets(self.label_sets).to(self.device)

    def _build_loss(self) -> nn.Module:
        """Puts the label-set loss into nnU-Net's deep-supervision wrapper."""
        stock = super()._build_loss()
        loss = LabelSetLoss(self._sets, batch_dice=self.configuration_manager.batch_dice, ddp=self.is_ddp)
        if not isinstance(stock, DeepSupervisionWrapper):
            return loss
        stock.loss = loss
        return stock

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
        """As nnU-Net; the log says which groups the pseudo Dice lists, and which case follows which scheme."""
        super().on_train_start()
        table = self.label_sets
        self.print_to_log_file("Pseudo dice is given for:", ", ".join(table.groups))
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

    def train_step(self, batch: dict) -> dict:
        """As nnU-Net, on targets that carry their case's label scheme."""
        return super().train_step(self._with_schemes(batch))

    def validation_step(self, batch: dict) -> dict:
        """Returns loss and, per decidable group, true positives, false positives and false negatives."""
        batch = self._with_schemes(batch)
        data, target = batch["data"].to(self.device, non_blocking=True), batch["target"]
        with torch.autocast(self.device.type) if self.device.type == "cuda" else dummy_context():
            output = self.network(data)
            loss = self.loss(output, target)
        if self.enable_deep_supervision:
            output, target = output[0], target[0]
        counts = hard_counts(self._sets, output.argmax(1).flatten(1), target.flatten(1))
        tp, fp, fn = (values.cpu().numpy() for values in counts)
        return {"loss": loss.detach().cpu().numpy(), "tp_hard": tp, "fp_hard": fp, "fn_hard": fn}

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """As nnU-Net, without its warning for groups that had no voxel in the epoch and so no Dice."""
        with np.errstate(invalid="ignore"):
            super().on_validation_epoch_end(val_outputs)

    def _with_schemes(self, batch: dict) -> dict[str, Any]:
        schemes = torch.from_numpy(self.label_sets.scheme_indices(batch["keys"])).to(self.device)

        def encode(target: Tensor) -> Tensor:
            return self._sets.encode(target.to(self.device, non_blocking=True), schemes)

        target = batch["target"]
        return {**batch, "target": [encode(t) for t in target] if isinstance(target, list) else encode(target)}

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """As nnU-Net, then replaces summary.json by one on decidable groups; nnU-Net's own is kept beside it."""
        super().perform_actual_validation(save_probabilities)
        if self.local_rank != 0:
            return
        folder = Path(self.output_folder) / "validation"
        (folder / "summary.json").replace(folder / "summary_unannotated_as_absent.json")
        references = Path(self.preprocessed_dataset_folder_base) / "gt_segmentations"
        summary = evaluate_folder(
            self.label_sets, self.do_split()[1], references, folder, self.dataset_json["file_ending"]
        )
        write_json(folder / "summary.json", summary)
        self.print_to_log_file("The mean above takes structures a source does not annotate for absent.")
        for group, metrics in summary["mean"].items():
            self.print_to_log_file(f"  {group}: Dice {metrics['Dice']:.4f}")
        self.print_to_log_file(f"Mean Dice of decidable groups: {summary['foreground_mean'].get('Dice', np.nan):.4f}")
