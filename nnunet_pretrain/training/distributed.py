"""Trainer part: one training run by many processes, on one machine or on several, on GPUs or (gloo) on CPUs.

nnU-Net trains distributed as well, but takes the process's rank for the number of its GPU: the first process of a
second machine with eight GPUs each would ask for cuda:8. It also takes for granted that the device is a GPU. This part
separates the two numbers and leaves everything else to nnU-Net:

    `local_rank` (nnU-Net's name)  rank among all processes; the process with 0 writes logs, checkpoints and metrics
    `device_of_process`            device of the process, from its number on its machine (LOCAL_RANK, set by torchrun)

`nnUNetv2_train -num_gpus N` starts all processes on one machine and sets no LOCAL_RANK; there both numbers are equal.
"""

from __future__ import annotations

import os
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import distributed as dist
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn import SyncBatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer


def is_distributed() -> bool:
    """Returns whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Returns the number of this process among all processes, 0 when it trains alone."""
    return dist.get_rank() if is_distributed() else 0


def device_of_process(device: torch.device) -> torch.device:
    """Returns the device a process works on.

    Args:
        device: What the user asked for; for GPUs only the kind counts.

    Returns:
        `device` itself unless it is a GPU; else the GPU whose number is LOCAL_RANK, or the rank if that is not set.

    Raises:
        ValueError: LOCAL_RANK is not a number.
    """
    if device.type != "cuda":
        return device
    number = os.environ.get("LOCAL_RANK", str(rank()))
    if not number.isdigit():
        raise ValueError(f"LOCAL_RANK must be the number of a GPU of this machine, got '{number}'; start with torchrun")
    return torch.device("cuda", int(number))


def rank_seed(seed: int) -> int:
    """Turns a run's seed into that of this process, so that no two processes draw the same cases.

    Args:
        seed: Seed of the run, not negative.

    Returns:
        `seed` itself in the process with rank 0, in the others an independent seed below 2 ** 32.
    """
    return seed if rank() == 0 else int(np.random.SeedSequence((seed, rank())).generate_state(1)[0])


def wrap_for_device(
    network: nn.Module, device: torch.device, find_unused_parameters: bool = False
) -> DistributedDataParallel:
    """Wraps a network so that all processes apply the mean of their gradients.

    Args:
        network: Network on `device`, compiled or not. On GPUs its batch norms become synchronised ones, as in nnU-Net;
            PyTorch has none for CPUs, there each process normalises its own share of the batch.
        device: Device of this process.
        find_unused_parameters: Whether a pass may leave parameters out; they then get no gradient in any process.
    """
    if device.type != "cuda":
        return DistributedDataParallel(network, find_unused_parameters=find_unused_parameters)
    return DistributedDataParallel(
        SyncBatchNorm.convert_sync_batchnorm(network),
        device_ids=[device.index],
        find_unused_parameters=find_unused_parameters,
    )


def unwrapped(network: nn.Module) -> nn.Module:
    """Returns the network itself, without what distributes or compiles it."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    return network._orig_mod if isinstance(network, OptimizedModule) else network


class DistributedTraining(nnUNetTrainer):
    """Lets nnU-Net train with many processes; alone, it changes nothing.

    nnU-Net's `initialize` wraps the network between two hooks, `configure_optimizers` and `_build_loss`, if `is_ddp` is
    set, and reads `is_ddp` nowhere else in between. So the first hook wraps for the right device and lowers the flag,
    and the second one raises it again: no stock method is copied and the order of things stays nnU-Net's.

    Put this part before those that override `configure_optimizers` or `on_train_start` in a trainer's list of bases.

    Attributes:
        find_unused_parameters: Whether a training step may leave parameters out.
    """

    find_unused_parameters = False
    is_ddp: bool
    network: Any
    output_folder_base: str

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net fixes this signature
    ) -> None:
        if rank() != 0:
            os.environ["nnUNet_wandb_enabled"] = "0"  # else every process starts a run of its own in one folder
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_ddp:
            self.device = device_of_process(device)
            if self.device.type != "cuda":
                self.grad_scaler = None

    def _set_batch_size_and_oversample(self) -> None:
        """As nnU-Net: the plans' batch is shared by all processes. Refuses processes that would get no patch.

        Raises:
            ValueError: There are more processes than patches in a batch.
        """
        batch_size = self.configuration_manager.batch_size
        if self.is_ddp and batch_size < dist.get_world_size():
            raise ValueError(
                f"{dist.get_world_size()} processes share one batch, but configuration '{self.configuration_name}' of "
                f"plans '{self.plans_manager.plans_name}' has batch_size {batch_size}; "
                f"start at most {batch_size} processes, or raise batch_size in the plans"
            )
        super()._set_batch_size_and_oversample()

    def configure_optimizers(self) -> tuple[Optimizer, Any]:
        """As the other parts; then wraps the network, so that nnU-Net does not."""
        optimizer, schedule = super().configure_optimizers()
        if self.is_ddp:
            self.network = wrap_for_device(self.network, self.device, self.find_unused_parameters)
            self.is_ddp = False  # until _build_loss
        return optimizer, schedule

    def _build_loss(self) -> nn.Module:
        """As the other parts, which need to know again that training is distributed."""
        self.is_ddp = self.is_ddp or isinstance(self.network, DistributedDataParallel)
        return super()._build_loss()

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """As nnU-Net; then all processes validate with the first one's running statistics, which checkpoints hold."""
        super().on_train_epoch_end(train_outputs)
        if self.is_ddp:
            for buffer in self.network.buffers():
                dist.broadcast(buffer, 0)

    def on_train_start(self) -> None:
        """As nnU-Net, without two races between processes.

        A new splits_final.json is written by one process before the others read it. The copies of plans, dataset.json
        and fingerprint beside the folds are the first process's; nnU-Net lets all processes write them at once, so the
        others get a folder that is thrown away.
        """
        if not self.is_ddp:
            super().on_train_start()
            return
        if not self.was_initialized:
            self.initialize()
        try:
            if self.local_rank == 0:
                self.do_split()
        finally:
            dist.barrier()  # the others meet the same error, if there is one, when they split
        if self.local_rank == 0:
            super().on_train_start()
            return
        # A seed of the settings gave all processes the same weights; from here on each must draw its own numbers.
        torch.manual_seed(rank_seed(torch.initial_seed()))
        shared_folder = self.output_folder_base
        with TemporaryDirectory() as folder:
            self.output_folder_base = folder
            super().on_train_start()
            self.output_folder_base = shared_folder

    def print_to_log_file(self, *args: Any, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """As nnU-Net, where only the first process has a log file; what the others print says who they are."""
        who = () if self.local_rank == 0 else (f"rank {self.local_rank}:",)
        super().print_to_log_file(*who, *args, also_print_to_console=also_print_to_console, add_timestamp=add_timestamp)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """As nnU-Net, where each process predicts its own cases.

        These need different numbers of forward passes, so the passes must not wait for other processes, as they do
        when a network has buffers (batch norm, position tables).
        """
        if self.is_ddp:
            self.network.broadcast_buffers = False
        super().perform_actual_validation(save_probabilities)
        if self.is_ddp:
            self.network.broadcast_buffers = True
