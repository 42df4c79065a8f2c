"""Trainer parts: examples instead of voxels are learned, and scored.

nnU-Net's own loader, augmentation and training loop stay; its dataset is exchanged for one whose cases are the crops
of the examples, and the class of each takes the place of the label map. nnU-Net's log has fixed names: what it calls
(mean) pseudo Dice is the (mean) AUC here, and the best checkpoint is chosen by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import distributed as dist
from torch import nn

from nnunet_pretrain.checkpoints.described import DescribedCheckpoints
from nnunet_pretrain.classification.crops import ExampleImages
from nnunet_pretrain.classification.inference import autocast_on, probabilities_of, write_probabilities
from nnunet_pretrain.classification.labels import TABLE, Example, read_examples
from nnunet_pretrain.classification.lesions import Box, find_boxes
from nnunet_pretrain.classification.metrics import METHOD, all_metrics, auc, auc_by_class, interval_text
from nnunet_pretrain.files import write_json
from nnunet_pretrain.planning.settings import ClassificationSettings, PretrainSettings
from nnunet_pretrain.training.distributed import unwrapped
from nnunet_pretrain.training.sampling import case_weights, repeated
from nnunet_pretrain.training.workers import stop_workers

PROBABILITIES = "probabilities.csv"
MAX_NAMED = 10


def classification_settings(settings: PretrainSettings, plans_name: str) -> ClassificationSettings:
    """Returns what plans say of a classification.

    Raises:
        ValueError: They say nothing.
    """
    if settings.classification is None:
        raise ValueError(f"plans '{plans_name}' classify nothing; make them with `nnunet_pretrain plan_classification`")
    return settings.classification


class InOrder:
    """Batches of all examples in their order, over and over; the last batch of a round may be smaller.

    Args:
        images: The examples' images.
        keys: Their keys.
        batch_size: Examples per batch.
    """

    def __init__(self, images: ExampleImages, keys: Sequence[str], batch_size: int) -> None:
        self.images, self.keys, self.batch_size = images, list(keys), batch_size
        self._next = 0

    def __len__(self) -> int:
        return ceil(len(self.keys) / self.batch_size)

    def restart(self) -> None:
        """Begins with the first example again."""
        self._next = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        chosen = self.keys[self._next : self._next + self.batch_size]
        self._next = (self._next + self.batch_size) % (len(self) * self.batch_size)
        data = np.stack([self.images.load_case(key)[0] for key in chosen])
        return {"data": torch.from_numpy(data.astype(np.float32)), "keys": np.array(chosen)}


class SameClasses(DescribedCheckpoints):
    """As its base; continues only trainings of the same classes."""

    settings: PretrainSettings

    def check_continues(self, checkpoint: Mapping[str, Any], where: str) -> None:
        """As its base; also refuses a checkpoint that tells other classes apart.

        Raises:
            ValueError: Its classes are others.
        """
        super().check_continues(checkpoint, where)
        then = PretrainSettings.from_plans(checkpoint["init_args"]["plans"]).classification
        now = classification_settings(self.settings, self.plans_manager.plans_name).classes
        if then is None or then.classes != now:
            found = "no classes" if then is None else f"the classes {_some(then.classes)}"
            raise ValueError(
                f"{where} was trained with {found}, the plans have {_some(now)}; start a new training (without --c)"
            )


class ClassificationCheckpoints(SameClasses):
    """As its base; the card says AUC per class instead of Dice per structure."""

    def checkpoint_extras(self) -> dict[str, Any]:
        """As the other parts, with the last epoch's AUC of each class in the card."""
        extras = super().checkpoint_extras()
        return {**extras, "card": {**extras["card"], "pseudo_dice": {}, "auc": self.pseudo_dice_by_group()}}

    def group_names(self) -> list[str]:
        """Returns the classes."""
        return list(classification_settings(self.settings, self.plans_manager.plans_name).classes)


class ClassificationSupervision(nnUNetTrainer):
    """Learns the classes of the plans' table by cross-entropy, with examples of all classes drawn alike.

    Every validation goes through all held-out examples, without augmentation.
    """

    settings: PretrainSettings
    network: Any
    dataset_class: Any
    dataloader_val: Any
    oversample_foreground_percent: float
    num_val_iterations_per_epoch: int
    held_out: ExampleImages
    _initial_patch_size: Sequence[int]

    @cached_property
    def classification(self) -> ClassificationSettings:
        """What the plans say of the classification."""
        return classification_settings(self.settings, self.plans_manager.plans_name)

    @cached_property
    def examples(self) -> dict[str, Example]:
        """Key to example, all of the dataset."""
        base = Path(self.preprocessed_dataset_folder_base)
        found = read_examples(base / f"{TABLE}.json")
        unknown = sorted({e.label for e in found} ^ set(self.classification.classes))
        if unknown or {e.lesion for e in found if e.lesion} != set(self.classification.lesions):
            raise ValueError(
                f"{base / TABLE}.json and plans '{self.plans_manager.plans_name}' have other classes or lesions (such "
                f"as {', '.join(unknown) or 'its lesions'}); plan again with `nnunet_pretrain plan_classification`"
            )
        return {example.key: example for example in found}

    def do_split(self) -> tuple[list[str], list[str]]:
        """As the other parts, without the cases that have no example.

        Raises:
            ValueError: A class is missing in the training, or the validation has only one.
        """
        training, validation = super().do_split()
        cases = {example.case for example in self.examples.values()}
        kept = [case for case in training if case in cases], [case for case in validation if case in cases]
        classes = [{e.label for e in self.examples.values() if e.case in part} for part in kept]
        lacking = sorted(set(self.classification.classes) - classes[0])
        if lacking or len(classes[1]) < 2:
            problem = f"no {', '.join(lacking)} to train on" if lacking else "fewer than two classes held out"
            raise ValueError(
                f"fold {self.fold} has {problem}; write folds that share out every class into splits_final.json, or "
                f"remove that file and plan again: `nnunet_pretrain plan_classification` then makes such folds"
            )
        return kept

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(  # noqa: N802
        self,
    ) -> tuple[Any, Any, Any, tuple[int, ...] | None]:
        """As the other parts; remembers how much larger than a patch the augmentation wants its crops."""
        found = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self._initial_patch_size = [int(edge) for edge in found[2]]
        return found

    def get_tr_and_val_datasets(self) -> tuple[ExampleImages, ExampleImages]:
        """As nnU-Net, of examples; those to train on are repeated as often as the balance of classes wants."""
        dataset_training, dataset_validation = super().get_tr_and_val_datasets()
        boxes = None
        if self.classification.crop == "lesion":
            base = Path(self.preprocessed_dataset_folder_base)
            parts = {*dataset_training.identifiers, *dataset_validation.identifiers}
            used = [e for e in self.examples.values() if e.case in parts]
            boxes = find_boxes(dataset_training, used, self.plans_manager, self.dataset_json, base)
            self._warn_of_large(boxes)
        keys, held_out = (
            [key for key, example in self.examples.items() if example.case in set(dataset.identifiers)]
            for dataset in (dataset_training, dataset_validation)
        )
        class_of = {key: example.label for key, example in self.examples.items()}
        self.print_to_log_file(f"Training: {_counted(keys, class_of)}; held out: {_counted(held_out, class_of)}.")
        drawn = repeated(keys, case_weights(keys, class_of, self.classification.balance))
        patch = self.configuration_manager.patch_size
        size = patch if boxes is None else self._initial_patch_size
        self.held_out = ExampleImages(dataset_validation, self.examples, boxes, patch, held_out)
        return ExampleImages(dataset_training, self.examples, boxes, size, drawn), self.held_out

    def _warn_of_large(self, boxes: Mapping[str, Box]) -> None:
        patch = self.configuration_manager.patch_size
        large = [key for key, box in boxes.items() if any(b - a > e for (a, b), e in zip(box, patch, strict=True))]
        if large:
            self.print_to_log_file(
                f"WARNING: {len(large)} of {len(boxes)} lesions are larger than the patch {list(patch)} and are cut, "
                f"such as {large[0]}; plan with a larger --crop-mm to see all of them"
            )

    def get_dataloaders(self) -> tuple[Any, InOrder]:
        """As nnU-Net for the training; the validation goes through the held-out examples in order."""
        self.oversample_foreground_percent, self.probabilistic_oversampling = 1.0, False  # the middle is foreground
        training, unused = super().get_dataloaders()
        stop_workers(unused)
        validation = InOrder(self.held_out, list(self.held_out.identifiers), self.batch_size)
        self.num_val_iterations_per_epoch = len(validation)
        return training, validation

    def _build_loss(self) -> nn.Module:
        """Returns the cross-entropy."""
        super()._build_loss()  # other parts wait for this hook
        return nn.CrossEntropyLoss()

    def _with_classes(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        classes = self.classification.classes
        target = [classes.index(self.examples[str(key)].label) for key in batch["keys"]]
        return {**batch, "target": torch.tensor(target)}

    def train_step(self, batch: dict) -> dict:
        """As nnU-Net, with the classes in place of label maps."""
        return super().train_step(self._with_classes(batch))

    def on_validation_epoch_start(self) -> None:
        """As nnU-Net; an interrupted validation begins anew."""
        super().on_validation_epoch_start()
        self.dataloader_val.restart()

    def validation_step(self, batch: dict) -> dict:
        """Returns loss, probabilities and classes of a batch of held-out examples."""
        target = self._with_classes(batch)["target"].to(self.device)
        with autocast_on(self.device):
            logits = self.network(batch["data"].to(self.device, non_blocking=True))
            loss = self.loss(logits, target)
        found = logits.float().softmax(1).cpu().numpy()
        return {"loss": loss.cpu().numpy(), "probabilities": found, "truth": target.cpu().numpy()}

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Logs loss and AUC under nnU-Net's names; all processes have seen all held-out examples."""
        truth, probabilities = (np.concatenate([out[key] for out in val_outputs]) for key in ("truth", "probabilities"))
        sizes = [len(out["truth"]) for out in val_outputs]
        areas = auc_by_class(truth, probabilities)
        mean = auc(truth, probabilities)
        self.logger.log("mean_fg_dice", mean, self.current_epoch)
        self.logger.log("dice_per_class_or_region", areas.tolist(), self.current_epoch)
        loss = float(np.average([float(out["loss"]) for out in val_outputs], weights=sizes))
        self.logger.log("val_losses", loss, self.current_epoch)
        self.print_to_log_file(f"AUC {mean:.4f} over {len(truth)} held-out examples (nnU-Net's log calls it Dice)")

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Classifies all held-out examples; writes validation/summary.json and probabilities.csv."""
        if self.local_rank == 0:
            self._validate()
        if self.is_ddp:
            dist.barrier()

    @torch.no_grad()
    def _validate(self) -> None:
        images = self._images_to_validate()
        network = unwrapped(self.network).eval()
        held_out = [self.examples[key] for key in images.identifiers]
        axes = self.inference_allowed_mirroring_axes
        found = np.stack([probabilities_of(network, images.load_case(e.key)[0], axes, self.device) for e in held_out])
        classes = self.classification.classes
        truth = np.array([classes.index(e.label) for e in held_out])
        metrics = all_metrics([e.case for e in held_out], truth, found)
        folder = Path(self.output_folder, "validation")
        write_probabilities(folder / PROBABILITIES, classes, held_out, found.tolist(), with_class=True)
        rows = [
            {"case": e.case, "lesion": e.lesion, "component": e.component, "class": e.label, "probabilities": p}
            for e, p in zip(held_out, found.tolist(), strict=True)
        ]
        counts = Counter(e.label for e in held_out)
        summary = {"classes": {name: counts[name] for name in classes}, "metrics": metrics, "method": METHOD}
        write_json(folder / "summary.json", {**summary, "metric_per_case": rows})
        for name, one in metrics.items():
            self.print_to_log_file(f"Validation {name}: {one['value']:.4f} ({interval_text(one)})")

    def _images_to_validate(self) -> ExampleImages:
        """Returns the held-out images; with --val no training has looked for them."""
        if self.dataset_class is None:
            self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        return self.get_tr_and_val_datasets()[1]


def _counted(keys: Sequence[str], class_of: Mapping[str, str]) -> str:
    counts = Counter(class_of[key] for key in keys)
    return ", ".join(f"{counts[name]} {name}" for name in sorted(counts))


def _some(classes: Sequence[str]) -> str:
    shown = ", ".join(classes[:MAX_NAMED])
    return shown if len(classes) <= MAX_NAMED else f"{shown} and {len(classes) - MAX_NAMED} more"
