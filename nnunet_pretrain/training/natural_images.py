"""Trainer part: a 3D network learns from photographs, whose red, green and blue are its three slices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

from nnunet_pretrain.conversion.natural_images.index import ImageIndex
from nnunet_pretrain.planning.settings import NaturalImageSettings, PretrainSettings
from nnunet_pretrain.training.depth_slices import GreySlices, for_slices
from nnunet_pretrain.training.natural_image_cases import CentredCases, FirstFailure, GreyCases
from nnunet_pretrain.training.natural_image_splits import hold_out_fold, hold_out_share
from nnunet_pretrain.training.original_images import OriginalImages, index_of
from nnunet_pretrain.training.preflight import check_labels, check_natural_images, check_preprocessed
from nnunet_pretrain.training.waiting import WaitingTime

TRAINERS = {
    "classification": "nnUNetTrainerVDTClassification",
    "segmentation": "nnUNetTrainerVDTSegmentation",
}
"""Task of the images to the trainer that learns it."""

Held = npt.NDArray[np.bool_]


class NaturalImageTraining(WaitingTime):
    """Learns from 3 x Y x X patches of photographs, as preprocessed volumes or read where they lie.

    Attributes:
        task: What the images' labels are.
    """

    task: ClassVar[Literal["classification", "segmentation"]] = "segmentation"
    settings: PretrainSettings
    dataset_class: Any
    preprocessed_dataset_folder: str
    num_iterations_per_epoch: int
    _steps: int = 0

    @cached_property
    def natural(self) -> NaturalImageSettings:
        """What the plans say of the images.

        Raises:
            ValueError: They say nothing, or have another task than this trainer.
        """
        found, name = self.settings.natural_images, self.plans_manager.plans_name
        if found is None:
            raise ValueError(f"plans '{name}' are not for natural images; make them with `nnunet_pretrain plan_2d`")
        if found.task != self.task:
            raise ValueError(
                f"plans '{name}' are for {found.task}, {type(self).__name__} learns {self.task}; "
                f"train with -tr {TRAINERS[found.task]}"
            )
        return found

    @cached_property
    def index(self) -> ImageIndex:
        """The dataset's images."""
        return index_of(Path(self.preprocessed_dataset_folder_base))

    @cached_property
    def failure(self) -> FirstFailure:
        """Why a worker process could not read a case."""
        return FirstFailure()

    @property
    def grey(self) -> bool:
        """Whether the slices are made grey."""
        return self.natural.slices == "grey"

    def initialize(self) -> None:
        """As nnU-Net; the plans must be for this trainer."""
        if self.natural.storage == "volumes":
            super().initialize()
            return
        with self._a_preprocessed_folder():
            super().initialize()
        self.dataset_class = OriginalImages

    @contextmanager
    def _a_preprocessed_folder(self) -> Iterator[None]:
        """Shows nnU-Net a folder whose files tell it a class of dataset; originals have no preprocessed files."""
        folder = self.preprocessed_dataset_folder
        with TemporaryDirectory() as temporary:
            Path(temporary, "none.b2nd").touch()
            self.preprocessed_dataset_folder = temporary
            try:
                yield
            finally:
                self.preprocessed_dataset_folder = folder

    def do_split(self) -> tuple[list[str], list[str]]:
        """Splits the images, always in the same way.

        Fold `all` holds out the images the data come with for validation, else the settings' share of every class.
        Numbered folds are five, each with its share of every class; folds of the plans, or those of an existing
        splits_final.json, go before.

        Raises:
            ValueError: There is no such fold, or nothing is left to train on.
        """
        folds = Path(self.preprocessed_dataset_folder_base, "splits_final.json")
        if self.fold != "all" and (self.settings.folds is not None or folds.is_file()):
            return super().do_split()
        cases = self.index.cases
        held_out = self._held_out
        training = cases[~held_out].tolist()
        if not training:
            raise ValueError(f"all {len(cases)} images of {self.plans_manager.dataset_name} are held out; none is left")
        return training, cases[held_out].tolist() or training  # as nnU-Net, which then validates on the training

    @cached_property
    def _held_out(self) -> Held:
        if self.fold != "all":
            return hold_out_fold(self.index.labels, int(self.fold))
        own: Held = self.index.parts == "val"
        return own if own.any() else hold_out_share(self.index.labels, self.settings.training.val_share)

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """As nnU-Net; foreground is in the middle slice, and a case that cannot be read is named."""
        training, validation = super().get_tr_and_val_datasets()
        return CentredCases(training, self.failure), CentredCases(validation, self.failure)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(  # noqa: N802
        self,
    ) -> tuple[Any, Any, Any, tuple[int, ...] | None]:
        """As the other parts, with rotation in plane only, and without mirroring along depth.

        The order of the slices belongs to `DepthShuffle`; a control without it must not get it by mirroring.
        """
        rotation, _, patch_size, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        in_plane = tuple(axis for axis in axes or () if axis != 0) or None
        self.inference_allowed_mirroring_axes = in_plane
        size = [self.configuration_manager.patch_size[0], *(int(edge) for edge in patch_size[1:])]
        self.print_to_log_file(f"Augmentation in plane only; mirror_axes without depth: {in_plane}")
        return rotation, True, size, in_plane

    def get_training_transforms(self, *arguments: Any, **named: Any) -> ComposeTransforms:
        """As nnU-Net, made fit for three slices without an order."""
        stock = super().get_training_transforms(*arguments, **named)
        return for_slices(stock, self.grey, self.natural.shuffle_depth)

    def get_validation_transforms(self, *arguments: Any, **named: Any) -> ComposeTransforms:
        """As nnU-Net; slices keep their order, so that the same images are the same in every epoch."""
        stock = super().get_validation_transforms(*arguments, **named)
        grey: list[BasicTransform] = [GreySlices()] if self.grey else []
        return ComposeTransforms([*grey, *stock.transforms])

    def run_training(self) -> None:
        """As nnU-Net.

        Raises:
            ValueError: An image vanished, or cannot be read any more.
        """
        try:
            super().run_training()
        except (RuntimeError, ValueError) as error:  # RuntimeError: nnU-Net's, for a worker process that is gone
            if not self.failure.message:
                raise
            raise ValueError(
                f"{self.failure.message}. Put it back, or convert and plan again without it; then continue with --c"
            ) from error

    def on_train_start(self) -> None:
        """As nnU-Net, after checks of the data; the log says what is shown."""
        if not self.was_initialized:
            self.initialize()
        if self.local_rank == 0:
            self._check_data()
        super().on_train_start()
        natural = self.natural
        order = "in random order" if natural.shuffle_depth else "always in the same order"
        what = "the luminance, three times" if self.grey else f"red, green and blue, {order}"
        self.print_to_log_file(f"Slices: {what}. Images: {natural.storage}.")

    def _check_data(self) -> None:
        base, name = Path(self.preprocessed_dataset_folder_base), self.plans_manager.plans_name
        checked = check_natural_images(base, self.dataset_json, self.settings, self.index, name)
        self.print_to_log_file(checked)
        if self.natural.storage == "volumes":
            folder = Path(self.preprocessed_dataset_folder)
            found = self.dataset_class.get_identifiers(str(folder))
            check_preprocessed(folder, found, self.index.cases.tolist(), name)
            check_labels(folder, found, self.dataset_json, name)
        cases, labels = self.index.cases, self.index.labels
        for part, what in zip(self.do_split(), ("to train on", "held out"), strict=True):
            sizes = np.unique(labels[np.isin(cases, part)], return_counts=True)[1]
            classes = f" of {len(sizes)} classes, {sizes.min()} to {sizes.max()} each" if len(sizes) > 1 else ""
            self.print_to_log_file(f"{len(part):,} images {what}{classes}")

    def on_train_epoch_start(self) -> None:
        """As nnU-Net; also starts the epoch's clock."""
        super().on_train_epoch_start()
        self._steps, self._epoch_started = 0, perf_counter()

    def train_step(self, batch: dict) -> dict:
        """As nnU-Net; also counts the steps."""
        result = super().train_step(batch)
        self._steps += 1
        return result

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """As nnU-Net; the log says how many images were seen, and how fast."""
        super().on_train_epoch_end(train_outputs)
        seconds = perf_counter() - self._epoch_started
        batch = self.configuration_manager.batch_size  # of all processes together
        seen = (self.current_epoch + 1) * self.num_iterations_per_epoch * batch
        self.print_to_log_file(
            f"{seen:,} images seen so far, {self._steps * batch / seconds:.1f} images/s; "
            f"waiting for data: {self.waiting_seconds / seconds:.1%} of the training steps"
        )

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """As the other parts; a network that learned from grey images is shown grey images."""
        stock = self.dataset_class
        if self.grey:
            self.dataset_class = partial(GreyCases, stock)
        try:
            super().perform_actual_validation(save_probabilities)
        finally:
            self.dataset_class = stock
