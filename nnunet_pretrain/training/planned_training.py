"""Trainer part: numbers, optimiser, schedule, mirroring and seed come from the plans."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.optim import SGD, AdamW, Optimizer

from nnunet_pretrain.planning.settings import PretrainSettings
from nnunet_pretrain.training.distributed import rank_seed
from nnunet_pretrain.training.schedule import WarmupDecayLR


def _each(transform: BasicTransform) -> Iterator[BasicTransform]:
    """Yields a transform and those inside it."""
    yield transform
    inner = transform.transforms if isinstance(transform, ComposeTransforms) else ()
    for one in (transform.transform,) if isinstance(transform, RandomTransform) else inner:
        yield from _each(one)


class PlannedTraining(nnUNetTrainer):
    """Trains as the plans' key "nnunet_pretrain" says; see `TrainingSettings`."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net fixes this signature
    ) -> None:
        self.settings = PretrainSettings.from_plans(plans)
        super().__init__(plans, configuration, fold, dataset_json, device)
        training = self.settings.training
        self.initial_lr = training.initial_lr
        self.weight_decay = training.weight_decay
        self.num_epochs = training.num_epochs
        self.num_iterations_per_epoch = training.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = training.num_val_iterations_per_epoch
        self.save_every = training.save_every
        self.oversample_foreground_percent = training.oversample_foreground_percent
        self.probabilistic_oversampling = training.probabilistic_oversampling
        self.enable_deep_supervision = training.deep_supervision

    def initialize(self) -> None:
        """As nnU-Net, with the initial weights drawn from the settings' seed."""
        if self.settings.training.seed is not None:
            torch.manual_seed(self.settings.training.seed)
        super().initialize()

    def configure_optimizers(self) -> tuple[Optimizer, WarmupDecayLR]:
        """Returns the settings' optimiser, and a schedule with warm-up."""
        training = self.settings.training
        groups = self.parameter_groups()
        optimizer: Optimizer
        if training.optimizer == "AdamW":
            optimizer = AdamW(groups, lr=self.initial_lr, weight_decay=self.weight_decay)
        else:
            momentum, nesterov = training.momentum, training.nesterov
            optimizer = SGD(groups, self.initial_lr, momentum, weight_decay=self.weight_decay, nesterov=nesterov)
        return optimizer, WarmupDecayLR(
            optimizer, self.num_epochs, training.warmup_epochs, training.schedule, before=self.heads_only_epochs()
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the optimiser's groups; other parts give some weights a learning rate of their own."""
        return [{"params": list(self.network.parameters())}]

    def heads_only_epochs(self) -> int:
        """Returns how many epochs come before the warm-up; other parts may train only the heads in them."""
        return 0

    def do_split(self) -> tuple[list[str], list[str]]:
        """As nnU-Net, with the settings' folds in place of splits_final.json if they name some.

        Raises:
            ValueError: There are fewer folds than asked for.
        """
        folds = self.settings.folds
        if folds is None or self.fold == "all":
            return super().do_split()
        if int(self.fold) >= len(folds):
            raise ValueError(
                f"plans '{self.plans_manager.plans_name}' have {len(folds)} folds of their own, but fold {self.fold} "
                f"was asked for; choose one of 0 to {len(folds) - 1}"
            )
        chosen = folds[int(self.fold)]
        self.print_to_log_file(
            f"Fold {self.fold} of the plans: {len(chosen.train)} to train, {len(chosen.val)} held out."
        )
        return list(chosen.train), list(chosen.val)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(  # noqa: N802
        self,
    ) -> tuple[Any, Any, Any, tuple[int, ...] | None]:
        """As nnU-Net, with the settings' mirror axes."""
        rotation, dummy_2d, patch_size, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        chosen = self.settings.training.mirror_axes
        if chosen is None:
            left_right = self.left_right_axis()
            chosen = tuple(axis for axis in axes if axis != left_right)
        # nnU-Net's predictor takes the maximum of the axes, which an empty tuple does not have.
        self.inference_allowed_mirroring_axes = chosen or None
        self.print_to_log_file(f"mirror_axes: {self.inference_allowed_mirroring_axes}")
        return rotation, dummy_2d, patch_size, chosen or None

    def get_training_transforms(self, *arguments: Any, **named: Any) -> ComposeTransforms:
        """As nnU-Net, whose blur takes what a stopwatch finds faster of two ways that differ in rounding.

        Without the stopwatch two runs with the same random numbers see the same images.
        """
        stock: ComposeTransforms = super().get_training_transforms(*arguments, **named)
        for transform in _each(stock):
            if isinstance(transform, GaussianBlurTransform):
                transform.benchmark = False
        return stock

    def left_right_axis(self) -> int | None:
        """Returns the axis along which mirroring would swap left and right labels, None if no label has a side."""
        names = {name.lower() for name in self.dataset_json["labels"]}
        if not any("left" in name and name.replace("left", "right") in names for name in names):
            return None
        # Readers give (z, y, x); the planner may have permuted the axes. 2D patches have lost the first one.
        position = list(self.plans_manager.transpose_forward).index(2)
        return position - (3 - len(self.configuration_manager.patch_size))

    def on_train_start(self) -> None:
        """As nnU-Net; also seeds the sampling of the main process."""
        if self.settings.training.seed is not None:
            np.random.seed(rank_seed(self.settings.training.seed))
        super().on_train_start()
