"""Trainer part: interruptions, crashes and divergence cost at most what came after the last checkpoint.

Checkpoints are nnU-Net's, written beside their place and moved there, so that a loadable one exists at any moment.
What nnU-Net does not keep (random states, the losses of a begun epoch) is added under
`checkpoint["init_args"]["nnunet_pretrain"]`; stock nnU-Net reads past it.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import distributed as dist

from nnunet_pretrain.checkpoints.reading import EXTRAS_KEY, read_checkpoint
from nnunet_pretrain.files import written_atomically
from nnunet_pretrain.labels import SCHEMES_KEY

LATEST = "checkpoint_latest.pth"


class TrainingStopped(Exception):  # noqa: N818 - an order, not an error; never leaves run_training
    """The user's signal was seen and the state is saved."""


def random_states(device: torch.device) -> dict[str, Any]:
    """Returns the state of every random generator of this process, as tensors and plain values."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Sets every random generator of this process to what `random_states` returned."""
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"].cpu())
    if device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)


class DurableTraining(nnUNetTrainer):
    """Saves on SIGTERM and Ctrl-C, writes checkpoints atomically, continues where it stopped, and stops at NaN.

    With one process (`nnUNet_n_proc_DA=0`, no GPU) a continued run is bit for bit the uninterrupted one. nnU-Net's
    augmentation workers draw from generators of their own, which no checkpoint holds.
    """

    num_iterations_per_epoch: int
    _stop_signal: int | None = None
    _losses: list[float]
    _restored: dict[str, Any] | None = None
    _validation_states: dict[str, Any] | None = None

    def run_training(self) -> None:
        """As nnU-Net; after SIGTERM or Ctrl-C it finishes the step, saves and exits with the signal's code."""
        self._losses = []
        with self._signals_noted():
            try:
                super().run_training()
            except TrainingStopped:
                pass
            except RuntimeError:
                if self._stop_signal is None:  # else the signal reached nnU-Net's loader processes as well
                    raise
                self._save_unfinished_epoch()
        if self._stop_signal is not None:
            self.print_to_log_file(f"Stopped by {signal.Signals(self._stop_signal).name}; continue with --c.")
            raise SystemExit(128 + self._stop_signal)

    @contextmanager
    def _signals_noted(self) -> Iterator[None]:
        def note(number: int, _: FrameType | None) -> None:
            if number == self._stop_signal == signal.SIGINT:  # the second time the user means it
                raise KeyboardInterrupt
            if self._stop_signal is not None:  # a launcher passes on what the user already sent
                return
            self._stop_signal = number
            print("Finishing this step, then saving. Once more to stop at once.", flush=True)  # noqa: T201

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def get_dataloaders(self) -> tuple[Any, Any]:
        """As nnU-Net; the loaders' processes leave Ctrl-C to this one."""
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            return super().get_dataloaders()
        finally:
            signal.signal(signal.SIGINT, handler)

    def on_train_start(self) -> None:
        """As nnU-Net; removes what a killed run left half written, and restores the random states last."""
        super().on_train_start()
        if self.local_rank == 0:
            for leftover in Path(self.output_folder).glob(".partial-*-checkpoint_*.pth"):
                leftover.unlink(missing_ok=True)
            if self._restored is not None:
                restore_random_states(self._restored["random_states"], self.device)

    def on_train_epoch_start(self) -> None:
        """As nnU-Net; a continued epoch runs only the steps it still lacks."""
        super().on_train_epoch_start()
        self._losses = list(self._restored["losses"]) if self._restored is not None else []
        self._restored = self._validation_states = None
        self._steps_of_epoch = self.num_iterations_per_epoch
        self.num_iterations_per_epoch -= len(self._losses)

    def train_step(self, batch: dict) -> dict:
        """As nnU-Net.

        Raises:
            FloatingPointError: The loss is not finite; nothing is saved after that step.
        """
        result = super().train_step(batch)
        self._losses.append(float(result["loss"]))
        self._refuse_non_finite(batch, float(result["loss"]))
        self._stop_if_asked()
        return result

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """As nnU-Net, over all steps of the epoch, those before an interruption included."""
        self.num_iterations_per_epoch = self._steps_of_epoch
        super().on_train_epoch_end([{"loss": np.array(loss, dtype=np.float32)} for loss in self._losses])

    def on_validation_epoch_start(self) -> None:
        """As nnU-Net; an interrupted validation will be repeated with the same draws."""
        super().on_validation_epoch_start()
        self._validation_states = random_states(self.device)

    def validation_step(self, batch: dict) -> dict:
        """As nnU-Net.

        Raises:
            FloatingPointError: The loss is not finite; the network must not be saved.
        """
        result = super().validation_step(batch)
        self._refuse_non_finite(batch, float(result["loss"]))
        self._stop_if_asked()
        return result

    def on_epoch_end(self) -> None:
        """As nnU-Net; the epoch is finished, so nothing of it needs to be continued."""
        self._losses, self._validation_states = [], None
        super().on_epoch_end()

    def _refuse_non_finite(self, batch: Mapping[str, Any], loss: float) -> None:
        if np.isfinite(loss):
            return
        data = batch["data"]
        cases = []
        for case, image in zip(batch["keys"], data, strict=True):
            finite = torch.isfinite(image)
            values = image[finite]
            extent = f"{values.min():.4g} to {values.max():.4g}" if len(values) else "none"
            cases.append(f"{case} (finite voxels from {extent}, {int((~finite).sum())} not finite)")
        raise FloatingPointError(
            f"the loss became {loss} in epoch {self.current_epoch}, step {len(self._losses)}, with the cases "
            f"{'; '.join(cases)}. Training stopped before anything was saved; the checkpoints in {self.output_folder} "
            f"are from before. Look at these cases, or lower initial_lr in the plans, then continue with --c"
        )

    def _stop_if_asked(self) -> None:
        if self.is_ddp:  # all processes stop after the same step, or the others would wait for this one
            seen = torch.tensor([self._stop_signal or 0], device=self.device)
            dist.all_reduce(seen, dist.ReduceOp.MAX)
            self._stop_signal = int(seen) or None
        if self._stop_signal is not None:
            self._save_unfinished_epoch()
            if self.is_ddp:
                dist.barrier()
            raise TrainingStopped

    def _save_unfinished_epoch(self) -> None:
        self.current_epoch -= 1  # nnU-Net stores the number of finished epochs as this number plus one
        self.save_checkpoint(str(Path(self.output_folder) / LATEST))
        self.current_epoch += 1

    def checkpoint_extras(self) -> dict[str, Any]:
        """Returns what goes into a checkpoint beside nnU-Net's own entries; other parts add to it."""
        states = self._validation_states or random_states(self.device)
        return {"resume": {"random_states": states, "losses": list(self._losses)}}

    def save_checkpoint(self, filename: str) -> None:
        """As nnU-Net, atomically: the previous file stays until the new one is complete on the disk."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        self.my_init_kwargs[EXTRAS_KEY] = self.checkpoint_extras()
        with written_atomically(Path(filename)) as temporary:
            super().save_checkpoint(str(temporary))
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As nnU-Net, from a file that was first read without running anything it contains."""
        checkpoint = (
            filename_or_checkpoint
            if isinstance(filename_or_checkpoint, dict)
            else read_checkpoint(Path(filename_or_checkpoint))
        )
        self.check_continues(checkpoint, str(filename_or_checkpoint)[:300])
        super().load_checkpoint(filename_or_checkpoint)
        logged = self.logger.local_logger.my_fantastic_logging
        for values in logged.values():
            del values[self.current_epoch :]  # a begun epoch is logged anew
        finite = [value for value in logged["ema_fg_dice"] if np.isfinite(value)]
        self._best_ema = max(finite, default=None)  # "latest" is written before the epoch is known to be the best
        self.restore_extras(checkpoint["init_args"].get(EXTRAS_KEY, {}))

    def restore_extras(self, extras: Mapping[str, Any]) -> None:
        """Takes back what `checkpoint_extras` stored, after nnU-Net's own entries; other parts take theirs.

        Args:
            extras: What the checkpoint holds; empty for a checkpoint of another trainer.
        """
        if "resume" in extras and self.current_epoch < self.num_epochs:
            self._restored = extras["resume"]

    def check_continues(self, checkpoint: Mapping[str, Any], where: str) -> None:
        """Refuses a checkpoint that is not of this run.

        Raises:
            ValueError: Its labels or label schemes differ from the dataset's.
        """
        then, now = checkpoint["init_args"]["dataset_json"], self.dataset_json
        for key in ("labels", SCHEMES_KEY):
            if then.get(key) != now.get(key):
                raise ValueError(
                    f"{where} was trained with other {key.replace('_', ' ')}: it has {_short(then.get(key))}, the "
                    f"dataset now has {_short(now.get(key))}. Start a new training (without --c), or transfer the "
                    f"weights with `nnunet_pretrain plan_transfer -c`"
                )


def _short(content: Any) -> str:
    names = ", ".join(map(str, content)) if content else "none"
    return names if len(names) < 200 else f"{names[:200]}..."
