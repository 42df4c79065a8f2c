"""Trainer part: which domain each step learns from.

A domain with n training cases is drawn with probability proportional to n ** (1 - sampling_alpha). Med3D does not say
how it draws; 0.5 lies between all cases alike (0) and all domains alike (1). The order of an epoch follows from the
seed and the epoch alone, so all processes meet the same domain in the same step, and a continued run goes on in it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_pretrain.labels.branches import BranchTable
from nnunet_pretrain.planning.settings import DomainSettings, PretrainSettings
from nnunet_pretrain.training.workers import stop_workers

SEED = 12345
"""nnU-Net's own seed for what must not change between runs; used when the settings name none."""

_WORKERS = "nnUNet_n_proc_DA"


def domain_order(numbers: Mapping[str, int], alpha: float, steps: int, seed: tuple[int, ...]) -> list[str]:
    """Returns the domain of every step of an epoch.

    Systematic sampling: a domain gets its expected number of steps, rounded down or up, so that the mean over epochs is
    what its probability says. No domain is left out of an epoch with enough steps.

    Args:
        numbers: Domain to number of training cases.
        alpha: The probability is proportional to n ** (1 - alpha).
        steps: Steps of the epoch.
        seed: Seed of run and epoch.
    """
    domains = list(numbers)
    random = np.random.default_rng(seed)
    weights = np.array([numbers[domain] for domain in domains], dtype=np.float64) ** (1 - alpha)
    edges = np.cumsum(weights / weights.sum()) * steps
    points = random.random() + np.arange(steps)
    times = np.bincount(np.searchsorted(edges[:-1], points, side="right"), minlength=len(domains))
    if steps >= len(domains):
        while times.min() == 0:
            times[times.argmin()] += 1
            times[times.argmax()] -= 1
    order = np.repeat(np.arange(len(domains)), times)
    random.shuffle(order)
    return [domains[i] for i in order]


class DomainLoader:
    """One loader per domain behind the interface of one; `order` says from which the next batches come.

    Args:
        loaders: Domain to nnU-Net's loader of its cases.
    """

    def __init__(self, loaders: Mapping[str, Any]) -> None:
        self.loaders = dict(loaders)
        self.order: Iterator[str] = iter(())

    def __iter__(self) -> DomainLoader:
        return self

    def __next__(self) -> dict[str, Any]:
        return next(self.loaders[next(self.order)])

    def finish(self) -> None:
        """Stops the loaders' processes."""
        for loader in self.loaders.values():
            stop_workers(loader)


class DomainBatches(nnUNetTrainer):
    """Draws every batch from one domain; with mixed batches, everything is as in a merged dataset.

    Put this part before that which continues a begun epoch (`DurableTraining`) in a trainer's list of bases.
    """

    settings: PretrainSettings
    domain_settings: DomainSettings
    branches: Mapping[str, BranchTable]
    source_of_case: Mapping[str, str]
    dataloader_train: Any
    dataloader_val: Any
    _loaded: str | None = None
    _losses: list[float]
    _steps_of_epoch: int

    def get_dataloaders(self) -> tuple[Any, Any]:
        """As nnU-Net, for each domain alone; its worker processes are shared out among the domains."""
        if self.domain_settings.batches == "mixed":
            return super().get_dataloaders()
        pairs = {}
        with _workers_shared_among(len(self.branches)):
            for domain in self.branches:
                self._loaded = domain
                try:
                    pairs[domain] = super().get_dataloaders()
                finally:
                    self._loaded = None
        training, validation = (DomainLoader({d: pair[i] for d, pair in pairs.items()}) for i in (0, 1))
        return training, validation

    def do_split(self) -> tuple[list[str], list[str]]:
        """As the other parts; while a domain's loader is made, only its cases.

        Raises:
            ValueError: A domain has no case to train on, or none held out.
        """
        training, validation = super().do_split()
        if self._loaded is None:
            return training, validation
        own, held_out = (
            [case for case in cases if self.source_of_case[case] == self._loaded] for cases in (training, validation)
        )
        if not own or not held_out:
            raise ValueError(
                f"fold {self.fold} has {len(own)} training and {len(held_out)} held-out cases of domain "
                f"'{self._loaded}', every domain needs both; train fold all, or change splits_final.json"
            )
        return own, held_out

    def on_train_epoch_start(self) -> None:
        """As nnU-Net; draws the epoch's domains, of which a continued epoch meets the rest."""
        super().on_train_epoch_start()
        if not isinstance(self.dataloader_train, DomainLoader):
            return
        cases = Counter(self.source_of_case[case] for case in self.do_split()[0])
        seed = self.settings.training.seed
        order = domain_order(
            {domain: cases[domain] for domain in self.branches},
            self.settings.training.sampling_alpha,
            self._steps_of_epoch,
            (SEED if seed is None else seed, self.current_epoch),
        )
        self.dataloader_train.order = iter(order[len(self._losses) :])

    def on_validation_epoch_start(self) -> None:
        """As nnU-Net; domains take turns, where the last epoch stopped."""
        super().on_validation_epoch_start()
        if isinstance(self.dataloader_val, DomainLoader):
            domains, steps = list(self.branches), self.num_val_iterations_per_epoch
            start = self.current_epoch * steps
            self.dataloader_val.order = iter([domains[(start + i) % len(domains)] for i in range(steps)])

    def on_train_end(self) -> None:
        """As nnU-Net, which stops the processes of its own loaders."""
        for loader in (self.dataloader_train, self.dataloader_val):
            if isinstance(loader, DomainLoader):
                loader.finish()
        super().on_train_end()


@contextmanager
def _workers_shared_among(domains: int) -> Iterator[None]:
    """Sets the number of worker processes nnU-Net starts for each of several loaders."""
    before = os.environ.get(_WORKERS)
    allowed = get_allowed_n_proc_DA()
    os.environ[_WORKERS] = str(max(1, allowed // domains) if allowed else 0)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_WORKERS]
        else:
            os.environ[_WORKERS] = before
