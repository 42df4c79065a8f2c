"""Trainer part: every domain is supervised by its own branch, and validated as the dataset it is alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config

from nnunet_pretrain.labels.branches import BranchTable, branch_tables
from nnunet_pretrain.networks.branches import BranchedNetwork, Route, branch_key, places_on
from nnunet_pretrain.planning.settings import DomainSettings
from nnunet_pretrain.preprocessing.preprocess import check_domain_records
from nnunet_pretrain.training.distributed import unwrapped
from nnunet_pretrain.training.domain_validation import validate_domains
from nnunet_pretrain.training.label_set_metrics import hard_counts_by_sample
from nnunet_pretrain.training.label_set_training import LabelSetSupervision
from nnunet_pretrain.training.label_sets import LabelSets


class BranchLosses(nn.Module):
    """The loss of each branch on the samples of its domain; their mean, weighted by the number of samples.

    Args:
        losses: Domain to its loss.

    Attributes:
        route: The domain of the whole batch, or one domain per sample.
        latest: Domain to its loss in the last pass.
    """

    def __init__(self, losses: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.losses = nn.ModuleDict({branch_key(domain): loss for domain, loss in losses.items()})
        self.route: Route | None = None
        self.latest: dict[str, Tensor] = {}

    def forward(self, output: Any, target: Tensor | list[Tensor]) -> Tensor:
        """Computes the loss.

        Args:
            output: What `BranchedNetwork` returns on this route.
            target: Encoded target (`LabelSets.encode`) of the whole batch, with deep supervision one per output.
        """
        if isinstance(self.route, str):
            loss: Tensor = self.losses[branch_key(self.route)](output, target)
            self.latest = {self.route: loss.detach()}
            return loss
        assert self.route is not None
        self.latest, losses = {}, []
        for domain, own in output.items():
            places = places_on(self.route, domain)
            part = [t[places] for t in target] if isinstance(target, list) else target[places]
            loss = self.losses[branch_key(domain)](own, part)
            self.latest[domain] = loss.detach()
            losses.append(loss * (len(places) / len(self.route)))
        return torch.stack(losses).sum()


class DomainSupervision(LabelSetSupervision):
    """Sends every sample through the branch of its domain, and through no other.

    The branches' gradients stay None where they have no sample (nnU-Net clears gradients to None before each step), so
    the optimiser leaves their weights, momentum and weight decay alone.
    """

    find_unused_parameters = True
    domain_losses: dict[str, list[float]]

    @property
    def domain_settings(self) -> DomainSettings:
        """What the plans say of the domains.

        Raises:
            ValueError: They say nothing.
        """
        if self.settings.domains is None:
            raise ValueError(
                f"plans '{self.plans_manager.plans_name}' name no domains; make plans with "
                f"`nnunet_pretrain plan_domains`"
            )
        return self.settings.domains

    @cached_property
    def branches(self) -> dict[str, BranchTable]:
        """The label sets of each branch.

        Raises:
            ValueError: The plans were made for other domains.
        """
        tables = branch_tables(self.label_sets, self.source_of_case)
        planned = self.domain_settings.numbers
        if set(planned) != set(tables):
            raise ValueError(
                f"plans '{self.plans_manager.plans_name}' have the domains {', '.join(planned)}, but the dataset has "
                f"{', '.join(tables)}; run `nnunet_pretrain plan_domains` again"
            )
        return {domain: tables[domain] for domain in planned}

    @cached_property
    def scored(self) -> tuple[str, ...]:
        """What pseudo Dice is given for: the decidable groups of all branches."""
        return tuple(dict.fromkeys(group for table in self.branches.values() for group in table.groups))

    @cached_property
    def _columns(self) -> dict[str, list[int]]:
        """The place in `scored` of each group of a branch."""
        return {domain: [self.scored.index(g) for g in table.groups] for domain, table in self.branches.items()}

    @cached_property
    def scored_by_source(self) -> dict[str, set[int]]:
        """The groups of each branch, as indices into `scored`."""
        return {domain: set(columns) for domain, columns in self._columns.items()}

    @cached_property
    def _branch_sets(self) -> dict[str, LabelSets]:
        return {domain: LabelSets(table).to(self.device) for domain, table in self.branches.items()}

    def supervised(self, stock: nn.Module, sets: LabelSets, ddp: bool | None = None) -> nn.Module:
        """As the label-set loss, one for each branch.

        In mixed batches processes meet different domains, so each process takes the means over its own samples.
        """
        if self.domain_settings.batches == "mixed":
            ddp = False
        return BranchLosses(
            {
                domain: super(DomainSupervision, self).supervised(stock, own, ddp)
                for domain, own in self._branch_sets.items()
            }
        )

    def initialize(self) -> None:
        """As nnU-Net; refuses plans of a network without branches."""
        if self._do_i_compile():
            _let_torch_compile(len(self.branches))
        super().initialize()
        network = unwrapped(self.network)
        if not isinstance(network, BranchedNetwork):
            raise ValueError(
                f"plans '{self.plans_manager.plans_name}' name the network {type(network).__name__}, which has no "
                f"branches; make plans with `nnunet_pretrain plan_domains`"
            )

    def log_labels(self) -> None:
        """Writes into the log what each branch learns."""
        for domain, table in self.branches.items():
            spacing = ", ".join(f"{mm:.3g}" for mm in self.domain_settings.numbers[domain].spacing)
            cases = sum(source == domain for source in self.source_of_case.values())
            self.print_to_log_file(
                f"Branch {domain}: {cases} cases at {spacing} mm, channels {', '.join(table.channel_names)}"
            )

    def _check_data(self) -> None:
        super()._check_data()
        check_domain_records(self.plans_manager.plans, self.dataset_json)

    def on_train_epoch_start(self) -> None:
        """As nnU-Net; no domain has a loss in this epoch yet."""
        super().on_train_epoch_start()
        self.domain_losses = {domain: [] for domain in self.branches}

    def train_step(self, batch: dict) -> dict:
        """As nnU-Net, through the branches of the batch's domains."""
        self._set_route(self.route_of(batch["keys"]))
        result = super().train_step(batch)
        for domain, loss in self.loss.latest.items():
            self.domain_losses[domain].append(float(loss))
        return result

    def validation_step(self, batch: dict) -> dict:
        """As label-set supervision; a mixed batch is taken apart into its domains."""
        route = self.route_of(batch["keys"])
        if isinstance(route, str):
            self._set_route(route)
            return super().validation_step(batch)
        results, order = [], []
        for domain in dict.fromkeys(route):
            places = places_on(route, domain)
            order += places
            self._set_route(domain)
            results.append((len(places), super().validation_step(_part_of(batch, places))))
        joined = {"loss": np.asarray(sum(n * result["loss"] for n, result in results) / len(route))}
        for name in results[0][1]:
            values = [result[name] for _, result in results]
            if name.endswith("_by_sample"):
                joined[name] = np.concatenate(values)[np.argsort(order)]
            elif name != "loss":
                joined[name] = np.sum(values, axis=0)
        return joined

    def counts(self, prediction_BV: Tensor, rows_BV: Tensor, cases: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns true positives, false positives and false negatives, each (B, len(scored)), of one domain's cases."""
        domain = self.source_of_case[str(cases[0])]
        own = hard_counts_by_sample(self._branch_sets[domain], prediction_BV, rows_BV)
        tp, fp, fn = (values.new_zeros(len(values), len(self.scored)) for values in own)
        for spread, values in zip((tp, fp, fn), own, strict=True):
            spread[:, self._columns[domain]] = values
        return tp, fp, fn

    def route_of(self, cases: Sequence[str]) -> Route:
        """Returns the one domain of a batch, or the domain of each sample."""
        domains = tuple(self.source_of_case[str(case)] for case in cases)
        return domains[0] if len(set(domains)) == 1 else domains

    def _set_route(self, route: Route) -> None:
        network: Any = unwrapped(self.network)
        network.route = self.loss.route = route

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Predicts every held-out case with its branch, at its domain's spacing, and scores it by its own labels."""
        self.set_deep_supervision_enabled(False)
        self.network.eval()
        summary = validate_domains(self, self.branches, save_probabilities)
        if summary is not None:
            self.report_validation(summary)
            for source, found in summary["per_source"].items():
                self.logger.log_summary(f"final_val/{source}_dice", found["foreground_mean"].get("Dice", np.nan))
        self.set_deep_supervision_enabled(self.enable_deep_supervision)


def _let_torch_compile(branches: int) -> None:
    """Lets torch.compile keep versions of the decoder for each branch: in training or not, one output or several."""
    config: Any = dynamo_config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # its name before torch 2.6
    setattr(config, name, max(getattr(config, name), 4 * branches))


def _part_of(batch: Mapping[str, Any], places: Sequence[int]) -> dict[str, Any]:
    """Returns some samples of a batch as nnU-Net's loader makes it."""
    target = batch["target"]
    return {
        "data": batch["data"][places],
        "target": [t[places] for t in target] if isinstance(target, list) else target[places],
        "keys": [batch["keys"][place] for place in places],
    }
