"""Trainer part: what is frozen, and how fast each part of a transferred network learns."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from nnunet_pretrain.networks.parts import Part, layers_of, parts_of
from nnunet_pretrain.planning.settings import FineTuning
from nnunet_pretrain.training.distributed import unwrapped, wrap_for_device
from nnunet_pretrain.training.planned_training import PlannedTraining


def lr_factors(network: nn.Module, fine_tuning: FineTuning) -> dict[str, float]:
    """Returns what the learning rate of every parameter is multiplied with.

    The factor of its part, times layer_decay to the power of the layers between it and the heads (layer-wise decay:
    Clark et al., ELECTRA, ICLR 2020).

    Args:
        network: Network, neither compiled nor wrapped.
        fine_tuning: The plans' settings.
    """
    of_part = {
        "encoder": fine_tuning.encoder_lr_factor,
        "decoder": fine_tuning.decoder_lr_factor,
        "heads": fine_tuning.heads_lr_factor,
    }
    parts, layers = parts_of(network), layers_of(network)
    last = max(layers.values())
    return {
        name: of_part[parts[name]] * fine_tuning.layer_decay ** (last - layers[name])
        for name, _ in network.named_parameters()
    }


class FineTunedTraining(PlannedTraining):
    """Freezes parts and gives each its own learning rate, as the plans' entry `fine_tuning` says.

    Frozen means that no gradient is computed (`requires_grad_(False)`), so nnU-Net's gradient clipping sees only what
    learns, and that batch norms keep their statistics. The control from scratch has nothing worth protecting: there
    everything learns at full rate from the first step, with the same epochs.
    """

    network: Any
    _frozen: frozenset[Part] | None = None

    @property
    def fine_tuning(self) -> FineTuning:
        """The plans' settings, or their neutral values in a run from scratch."""
        transfer = self.settings.transfer
        return self.settings.fine_tuning if transfer is not None and transfer.checkpoint else FineTuning()

    def configure_optimizers(self) -> tuple[Optimizer, Any]:
        """As the other parts; what never learns is frozen before the network is distributed."""
        self._freeze(frozen_parts(self.fine_tuning, self.current_epoch))
        return super().configure_optimizers()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns one group per learning rate, the heads' first: its rate is the one nnU-Net logs."""
        network = unwrapped(self.network)
        factors = lr_factors(network, self.fine_tuning)
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in reversed(list(network.named_parameters())):
            groups.setdefault(factors[name], []).append(parameter)
        if len(groups) == 1:
            return super().parameter_groups()
        return [{"params": found[::-1], "lr": self.initial_lr * factor} for factor, found in groups.items()]

    def heads_only_epochs(self) -> int:
        """Returns how many epochs come before the warm-up of the whole network."""
        return self.fine_tuning.heads_only_epochs

    def on_train_epoch_start(self) -> None:
        """As nnU-Net; freezes and thaws parts when their time has come."""
        super().on_train_epoch_start()
        frozen = frozen_parts(self.fine_tuning, self.current_epoch)
        if frozen != self._frozen:
            self._freeze(frozen)
            if isinstance(self.network, DistributedDataParallel):  # it waits for the gradients it was made with
                self.network = wrap_for_device(self.network.module, self.device)
        network = unwrapped(self.network)
        for module in network.modules():
            if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters()):
                module.train(not frozen)

    def _freeze(self, frozen: frozenset[Part]) -> None:
        network = unwrapped(self.network)
        parts = parts_of(network)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(parts[name] not in frozen)
            if parts[name] in frozen:
                parameter.grad = None
        if frozen or self._frozen:
            self.print_to_log_file(f"Frozen from here on: {', '.join(sorted(frozen)) or 'nothing'}")
        self._frozen = frozen


def frozen_parts(fine_tuning: FineTuning, epoch: int) -> frozenset[Part]:
    """Returns the parts that do not learn in an epoch, counted from 0."""
    if epoch < fine_tuning.heads_only_epochs:
        return frozenset(("encoder", "decoder"))
    return frozenset(("encoder",) if fine_tuning.freeze_encoder else ())
