"""Trainer part: starts from the checkpoint named in the plans."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from nnunet_pretrain.checkpoints.branches import ordinary
from nnunet_pretrain.checkpoints.durable import DurableTraining
from nnunet_pretrain.checkpoints.pretrained import read_pretrained
from nnunet_pretrain.files import sha256_of, write_json
from nnunet_pretrain.planning.settings import PretrainSettings, TransferSettings
from nnunet_pretrain.training.distributed import unwrapped
from nnunet_pretrain.transfer.pretrained_network import facts_of, pretrained_network
from nnunet_pretrain.transfer.report import TransferReport
from nnunet_pretrain.transfer.weights import transfer_weights

REPORT = "transfer_report.json"


class TransferredWeights(DurableTraining):
    """Loads pre-trained weights once, when a new training starts, before the network is compiled or distributed.

    `--c` and `--val` restore the run's own checkpoint and never need the pre-trained file again. nnU-Net's own
    `-pretrained_weights` is refused beside it; with the control's plans it is used, and the log says so.
    """

    settings: PretrainSettings
    _resumed = False
    _starts = False
    _fresh: list[float] | None = None
    _transfer_report: dict[str, Any] | None = None

    @property
    def transfer(self) -> TransferSettings:
        """What the plans say of the transfer.

        Raises:
            ValueError: They say nothing.
        """
        if self.settings.transfer is None:
            raise ValueError(
                f"plans '{self.plans_manager.plans_name}' name no transfer; "
                f"make them with `nnunet_pretrain plan_transfer`"
            )
        return self.settings.transfer

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As nnU-Net; the weights then come from this run and not from the pre-training."""
        super().load_checkpoint(filename_or_checkpoint)
        self._resumed = True

    def configure_optimizers(self) -> tuple[Optimizer, Any]:
        """As the other parts, after loading the weights if a training starts."""
        if self._starts and self.transfer.checkpoint is not None:
            self._load_pretrained(self.transfer)
        else:
            self._fresh = _digest(self.network)
        return super().configure_optimizers()

    def on_train_start(self) -> None:
        """As nnU-Net; a training that starts anew loads the weights."""
        path = self.transfer.checkpoint
        if not self.was_initialized:
            self._starts = True
            self.initialize()
        elif not self._resumed and path is not None:
            if self._fresh != _digest(self.network):
                raise ValueError(
                    f"plans '{self.plans_manager.plans_name}' start from {path}, and the network already has other "
                    f"weights, such as those of -pretrained_weights; leave that option out, or use the control's plans"
                )
            self._load_pretrained(self.transfer)
        if self._resumed:
            self.print_to_log_file("Continuing; the pre-trained weights are not loaded again.")
        elif path is None and self._fresh != _digest(self.network):
            self.print_to_log_file("Weights were loaded by nnU-Net's -pretrained_weights; the plans name none.")
        elif path is None:
            self.print_to_log_file("Control run: no pre-trained weights, everything starts from scratch.")
        super().on_train_start()

    def _load_pretrained(self, transfer: TransferSettings) -> TransferReport:
        path = Path(transfer.checkpoint or "")
        checkpoint = ordinary(read_pretrained(path), transfer.branch)
        sha256 = sha256_of(path)
        if transfer.sha256 is not None and sha256 != transfer.sha256:
            raise ValueError(
                f"{path} has sha256 {sha256}, but the transfer was planned with {transfer.sha256}; "
                f"the file changed: run `nnunet_pretrain plan_transfer` again"
            )
        target = facts_of(self.plans_manager.plans, self.configuration_name, self.dataset_json)
        pretrained = pretrained_network(checkpoint, self.plans_manager.transpose_forward)
        report = transfer_weights(unwrapped(self.network), target, pretrained, transfer)
        self._transfer_report = report.as_dict()
        if self.local_rank == 0:
            self.print_to_log_file("Transfer report:", *(f"\n  {line}" for line in report.lines()))
            write_json(Path(self.output_folder) / REPORT, self._transfer_report)
        return report

    def checkpoint_extras(self) -> dict[str, Any]:
        """As the other parts, with the transfer report."""
        report = {} if self._transfer_report is None else {"transfer_report": self._transfer_report}
        return {**super().checkpoint_extras(), **report}

    def restore_extras(self, extras: Mapping[str, Any]) -> None:
        """As the other parts, with the transfer report."""
        super().restore_extras(extras)
        self._transfer_report = extras.get("transfer_report")


def _digest(network: nn.Module) -> list[float]:
    """Returns a number per parameter that changes when other weights are loaded."""
    return [float(p.detach().double().sum()) for p in network.parameters()]
