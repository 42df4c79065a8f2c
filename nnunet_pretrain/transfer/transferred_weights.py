"""Trainer part: starts from the checkpoint named in the plans."""

from __future__ import annotations

from pathlib import Path

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_pretrain.checkpoints.reading import read_checkpoint
from nnunet_pretrain.files import sha256_of, write_json
from nnunet_pretrain.planning.settings import PretrainSettings, TransferSettings
from nnunet_pretrain.transfer.weights import TransferReport, transfer_weights


class TransferredWeights(nnUNetTrainer):
    """Loads pre-trained weights once, when a new training starts.

    `--c` and `--val` restore the run's own checkpoint and never need the pre-trained file again.
    """

    settings: PretrainSettings
    _resumed = False

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As nnU-Net; the weights then come from this run and not from the pre-training."""
        super().load_checkpoint(filename_or_checkpoint)
        self._resumed = True

    def on_train_start(self) -> None:
        """As nnU-Net, after loading the weights."""
        if not self.was_initialized:
            self.initialize()
        if self.settings.transfer is None:
            raise ValueError(
                f"plans '{self.plans_manager.plans_name}' name no transfer; "
                f"make them with `nnunet_pretrain plan_transfer`"
            )
        if self._resumed:
            self.print_to_log_file("Continuing; the pre-trained weights are not loaded again.")
        elif self.settings.transfer.checkpoint is None:
            self.print_to_log_file("Control run: no pre-trained weights, everything starts from scratch.")
        else:
            self._load_pretrained(self.settings.transfer)
        super().on_train_start()

    def _load_pretrained(self, transfer: TransferSettings) -> TransferReport:
        path = Path(transfer.checkpoint or "")
        weights = read_checkpoint(path)["network_weights"]
        sha256 = sha256_of(path)
        if transfer.sha256 is not None and sha256 != transfer.sha256:
            raise ValueError(
                f"{path} has sha256 {sha256}, but the transfer was planned with {transfer.sha256}; "
                f"the file changed: run `nnunet_pretrain plan_transfer` again"
            )
        network = _unwrapped(self.network)
        report = transfer_weights(network, weights, str(path), sha256, transfer.min_loaded_share)
        if self.local_rank == 0:
            self.print_to_log_file("Transfer:", report)
            write_json(Path(self.output_folder) / "transfer_report.json", report.as_dict())
        return report


def _unwrapped(network: nn.Module) -> nn.Module:
    if isinstance(network, DistributedDataParallel):
        network = network.module
    return network._orig_mod if isinstance(network, OptimizedModule) else network
