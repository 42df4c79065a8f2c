"""Trainer parts: classes of natural images are learned, as in VDT's released pre-training (arXiv 2201.01426).

nnU-Net's loader, worker processes and training loop stay; cases become random parts of images, resampled to the patch,
and the class of each takes the place of the label map. nnU-Net's log has fixed names: what it calls mean pseudo Dice
is top-1 here, and the best checkpoint is chosen by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, SegOnlyTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from nnunet_pretrain.classification.held_out_images import HeldOutImages, evenly_spread, share_of
from nnunet_pretrain.classification.inference import autocast_on
from nnunet_pretrain.classification.resized_crops import ImageCrops, centre_box, random_box
from nnunet_pretrain.classification.supervision import SameClasses, classification_settings
from nnunet_pretrain.classification.top_k import TOP, places, summary_of
from nnunet_pretrain.files import write_json
from nnunet_pretrain.planning.settings import PretrainSettings
from nnunet_pretrain.training.depth_slices import DepthShuffle, GreySlices
from nnunet_pretrain.training.distributed import is_distributed, rank, unwrapped
from nnunet_pretrain.training.natural_images import NaturalImageTraining
from nnunet_pretrain.training.workers import stop_workers

Found = tuple[npt.NDArray[np.str_], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]
"""Case, class, place of the right class and loss of each image."""


class ImageClassCheckpoints(SameClasses):
    """As its base; the card says top-1 and top-5 instead of Dice per structure."""

    settings: PretrainSettings

    def checkpoint_extras(self) -> dict[str, Any]:
        """As the other parts, with the last epoch's accuracy in the card."""
        extras = super().checkpoint_extras()
        return {**extras, "card": {**extras["card"], "pseudo_dice": {}, "accuracy": self.pseudo_dice_by_group()}}

    def group_names(self) -> list[str]:
        """Returns what nnU-Net's list of pseudo Dice stands for."""
        return list(TOP)


class OneVoxel(SegOnlyTransform):
    """Keeps one voxel of a label map that says nothing, so that worker processes need not send the rest."""

    def _apply_to_segmentation(self, segmentation: Tensor, **params: Any) -> Tensor:
        return segmentation[:, :1, :1, :1].clone()


class ImageClassSupervision(NaturalImageTraining):
    """Learns the classes of photographs by cross-entropy with label smoothing, every image as often as any other."""

    task = "classification"
    network: Any
    dataloader_val: Any
    held_out: ImageCrops | None = None
    oversample_foreground_percent: float
    num_val_iterations_per_epoch: int

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the network's outputs."""
        return classification_settings(self.settings, self.plans_manager.plans_name).classes

    @cached_property
    def _class_at(self) -> npt.NDArray[np.int64]:
        """Class of the image at each position of the index."""
        names, codes = np.unique(self.index.labels, return_inverse=True)
        number = {name: i for i, name in enumerate(self.classes)}
        return np.array([number[name] for name in names.tolist()])[codes.reshape(-1)]

    def classes_of(self, cases: Sequence[str] | npt.NDArray[np.str_]) -> Tensor:
        """Returns the classes of images, shape (images,)."""
        return torch.from_numpy(self._class_at[[self.index.position(str(case)) for case in cases]])

    def _set_batch_size_and_oversample(self) -> None:
        """As the other parts; without a GPU, each process has a batch norm of its own, which needs two images.

        Raises:
            ValueError: This process would get one.
        """
        super()._set_batch_size_and_oversample()
        if self.is_ddp and self.batch_size < 2 and self.device.type != "cuda":
            whole, number = self.configuration_manager.batch_size, dist.get_world_size()
            raise ValueError(
                f"{number} processes share a batch of {whole} images, and each needs two; start at most "
                f"{max(1, whole // 2)} processes, or raise batch_size in the plans to {2 * number}"
            )

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(  # noqa: N802
        self,
    ) -> tuple[Any, Any, Any, tuple[int, ...] | None]:
        """As the other parts; the parts of images are cut to the size of the patch, and never rotated."""
        rotation, dummy_2d, _, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        return rotation, dummy_2d, list(self.configuration_manager.patch_size), axes

    def get_training_transforms(
        self, patch_size: Any, rotation: Any, scales: Any, mirror_axes: Any, *arguments: Any, **named: Any
    ) -> ComposeTransforms:
        """Returns mirroring and the order of the slices; the released pre-training does no more."""
        transforms: list[BasicTransform] = [MirrorTransform(allowed_axes=mirror_axes)] if mirror_axes else []
        transforms += [GreySlices()] if self.grey else []
        transforms += [DepthShuffle()] if self.natural.shuffle_depth else []
        return ComposeTransforms([*transforms, OneVoxel()])

    def get_validation_transforms(self, *arguments: Any, **named: Any) -> ComposeTransforms:
        """Returns what a held-out image goes through; slices keep their order."""
        return ComposeTransforms([*([GreySlices()] if self.grey else []), OneVoxel()])

    def get_tr_and_val_datasets(self) -> tuple[ImageCrops, ImageCrops]:
        """As nnU-Net, of parts of images: random ones to learn from, the middle of those held out.

        Raises:
            ValueError: A class has no image to learn from.
        """
        training, validation = super().get_tr_and_val_datasets()
        seen = set(self.classes_of(training.identifiers).unique().tolist())
        lacking = [name for i, name in enumerate(self.classes) if i not in seen]
        if lacking:
            remedy = "train fold all, or change splits_final.json"
            if self.fold == "all":
                remedy = "all its images are in the part that is held out; move some to the part to train on"
            raise ValueError(
                f"fold {self.fold} has no image of {len(lacking)} classes to train on, such as {lacking[0]}; {remedy}"
            )
        size = self.configuration_manager.patch_size
        natural = self.natural
        choose = partial(random_box, area=natural.crop_area, ratio=natural.crop_ratio)
        self.held_out = ImageCrops(validation.dataset, size, partial(centre_box, size=size[1:]), self.failure)
        return ImageCrops(training.dataset, size, choose, self.failure), self.held_out

    def get_dataloaders(self) -> tuple[Any, HeldOutImages]:
        """As nnU-Net for the training; the validation goes through the same held-out images in every epoch."""
        self.oversample_foreground_percent, self.probabilistic_oversampling = 0.0, False
        training, unused = super().get_dataloaders()
        assert self.held_out is not None
        stop_workers(unused)
        number = self.settings.training.num_val_iterations_per_epoch * self.configuration_manager.batch_size
        validation = self._in_order(evenly_spread(self.held_out.identifiers, number))
        self.num_val_iterations_per_epoch = len(validation)
        return training, validation

    def _in_order(self, cases: npt.NDArray[np.str_]) -> HeldOutImages:
        """Returns batches of this process's share of some held-out images."""
        processes = dist.get_world_size() if is_distributed() else 1
        batch_size = ceil(self.configuration_manager.batch_size / processes)  # the same in all of them
        own = share_of(cases, rank(), processes)
        assert self.held_out is not None
        return HeldOutImages(self.held_out, own, batch_size, self.get_validation_transforms(), get_allowed_n_proc_DA())

    def _build_loss(self) -> nn.Module:
        """Returns the cross-entropy with label smoothing (Szegedy et al., CVPR 2016)."""
        super()._build_loss()  # other parts wait for this hook
        return nn.CrossEntropyLoss(label_smoothing=self.natural.label_smoothing)

    def train_step(self, batch: dict) -> dict:
        """As nnU-Net, with the classes in place of label maps."""
        return super().train_step({**batch, "target": self.classes_of(batch["keys"])})

    def on_validation_epoch_start(self) -> None:
        """As nnU-Net; an interrupted validation begins anew."""
        super().on_validation_epoch_start()
        self.dataloader_val.restart()

    def validation_step(self, batch: dict) -> dict:
        """Returns the loss, and for each image of a batch its loss, class and the place of that class."""
        return self._classified(batch)

    @torch.no_grad()
    def _classified(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        target = self.classes_of(batch["keys"]).to(self.device)
        # Without what synchronises processes at every step.
        network = unwrapped(self.network) if self.is_ddp else self.network
        with autocast_on(self.device):
            logits = network(batch["data"].to(self.device, non_blocking=True)).float()
        losses = cross_entropy(logits, target, label_smoothing=self.natural.label_smoothing, reduction="none")
        found = {"truth": target, "places": places(logits, target), "losses": losses.double()}
        arrays = {name: values.cpu().numpy() for name, values in found.items()}
        return {"loss": arrays["losses"].mean(), "keys": np.asarray(batch["keys"]), **arrays}

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Logs loss, top-1 and top-5 under nnU-Net's names."""
        _, _, found, losses = gathered(val_outputs)
        top = [float((found < k).mean()) for k in TOP.values()]
        self.logger.log("mean_fg_dice", top[0], self.current_epoch)
        self.logger.log("dice_per_class_or_region", top, self.current_epoch)
        self.logger.log("val_losses", float(losses.mean()), self.current_epoch)
        accuracy = ", ".join(f"{name} {value:.4f}" for name, value in zip(TOP, top, strict=True))
        self.print_to_log_file(f"{accuracy} over {len(found)} held-out images (nnU-Net's log calls them Dice)")

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Classifies all held-out images; writes validation/summary.json."""
        if self.held_out is None:  # with --val no training has looked for them
            self.get_tr_and_val_datasets()
        assert self.held_out is not None
        batches = self._in_order(self.held_out.identifiers)
        self.network.eval()
        hidden = rank() != 0
        results = [
            self._classified(batch)
            for _, batch in zip(tqdm(range(len(batches)), "Validation", disable=hidden), batches, strict=False)
        ]
        cases, truth, found, _ = gathered(results)
        if rank() == 0:
            summary = summary_of(self.classes, truth, found)
            write_json(Path(self.output_folder, "validation", "summary.json"), summary)
            for name, one in summary["metrics"].items():
                interval = f"{one['low']:.4f} to {one['high']:.4f}"
                self.print_to_log_file(f"Validation {name}: {one['value']:.4f} ({interval}), {len(cases)} images")
        if self.is_ddp:
            dist.barrier()


def gathered(outputs: Sequence[Mapping[str, Any]]) -> Found:
    """Puts the results of all batches and processes together, each image once, in the order of the cases."""
    names = ("keys", "truth", "places", "losses")
    found = [np.concatenate([output[name] for output in outputs]) for name in names]
    if is_distributed():
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, found)
        found = [np.concatenate(values) for values in zip(*parts, strict=True)]
    _, first = np.unique(found[0], return_index=True)
    cases, truth, place, losses = (values[first] for values in found)
    return cases, truth, place, losses
