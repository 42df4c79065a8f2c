"""Freezing, learning rates per part and the heads-only phase, in real trainers on real networks."""

import json
import sys

import pytest
import torch
from nnunet_runs import run, script, shorten

from nnunet_pretrain.checkpoints.reading import read_checkpoint
from nnunet_pretrain.networks.parts import parts_of
from nnunet_pretrain.planning.settings import FineTuning
from nnunet_pretrain.training.schedule import WarmupDecayLR
from nnunet_pretrain.transfer.fine_tuning import frozen_parts, lr_factors

pytestmark = pytest.mark.slow


@pytest.fixture
def trainer(pretrained, monkeypatch):
    """Makes a trainer of the target with other fine-tuning settings, ready for its first epoch."""
    from nnunetv2.run.run_training import get_trainer_from_args

    for variable, value in pretrained.environment.items():
        monkeypatch.setenv(variable, value)
    folder = pretrained.root / "nnUNet_preprocessed/Dataset901_Target"

    def make(start="nnUNetTransferPlans_Merged", training=None, run=True, **fine_tuning):
        plans = json.loads((folder / f"{start}.json").read_text(encoding="utf-8"))
        plans["plans_name"] = "FineTuned"
        plans["nnunet_pretrain"]["fine_tuning"].update(fine_tuning)
        plans["nnunet_pretrain"]["training"].update(training or {})
        (folder / "FineTuned.json").write_text(json.dumps(plans), encoding="utf-8")
        made = get_trainer_from_args(
            "901", "3d_fullres", 0, "nnUNetTrainerTransfer", "FineTuned", device=torch.device("cpu")
        )
        made.get_dataloaders = lambda: (None, None)  # batches are made by hand
        if run:
            made.on_train_start()
        return made

    yield make
    (folder / "FineTuned.json").unlink(missing_ok=True)


def step(trainer):
    """One training step on a batch of noise; returns which tensors changed, and the parts they belong to."""
    torch.manual_seed(0)
    edges = [(24, 32, 32), (12, 16, 16), (6, 8, 8)]
    batch = {"data": torch.randn(2, 1, *edges[0]), "target": [torch.randint(0, 3, (2, 1, *e)) for e in edges]}
    batch["keys"] = ["a", "b"]
    before = {name: tensor.clone() for name, tensor in trainer.network.named_parameters()}
    trainer.train_step(batch)
    parts = parts_of(trainer.network)
    changed = {name for name, tensor in trainer.network.named_parameters() if not torch.equal(tensor, before[name])}
    return {parts[name] for name in changed}, changed


def test_only_heads_learn_at_first_and_clipping_sees_nothing_else(trainer):
    made = trainer(heads_only_epochs=1, training={"warmup_epochs": 0})
    made.on_train_epoch_start()
    assert step(made)[0] == {"heads"}
    body = [p for name, p in made.network.named_parameters() if parts_of(made.network)[name] != "heads"]
    assert all(p.grad is None and not p.requires_grad for p in body)
    made.current_epoch = 1
    made.on_train_epoch_start()
    assert step(made)[0] == {"encoder", "decoder", "heads"}


def test_a_frozen_encoder_never_learns(trainer):
    made = trainer(freeze_encoder=True)
    for made.current_epoch in (0, 1):
        made.on_train_epoch_start()
        assert step(made)[0] == {"decoder", "heads"}


def test_the_control_has_nothing_to_protect(trainer):
    made = trainer("nnUNetTransferPlans_Merged__scratch", heads_only_epochs=1, freeze_encoder=True, layer_decay=0.5)
    made.on_train_epoch_start()
    assert step(made)[0] == {"encoder", "decoder", "heads"}
    assert len(made.optimizer.param_groups) == 1


def test_every_part_learns_at_its_own_rate_over_the_whole_schedule(trainer):
    made = trainer(
        training={"num_epochs": 10, "warmup_epochs": 2, "initial_lr": 1e-3},
        encoder_lr_factor=0.1,
        heads_lr_factor=10,
        layer_decay=0.5,
    )
    names = {id(p): name for name, p in made.network.named_parameters()}
    factors = lr_factors(made.network, made.fine_tuning)
    assert factors["decoder.seg_layers.0.weight"] == 10
    assert factors["decoder.stages.2.convs.0.conv.weight"] == 0.5
    assert factors["encoder.stages.0.0.convs.0.conv.weight"] == pytest.approx(0.1 * 0.5**7)
    rates = []
    for made.current_epoch in range(10):
        made.on_train_epoch_start()
        groups = made.optimizer.param_groups
        ratio = {names[id(p)]: group["lr"] / groups[0]["lr"] for group in groups for p in group["params"]}
        assert ratio == pytest.approx({name: factor / 10 for name, factor in factors.items()})
        rates.append(groups[0]["lr"])
    assert rates[:3] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2])
    assert len(ratio) == len(names)


def test_nnunets_own_pretrained_weights_beside_ours_are_refused_and_with_the_control_named(trainer, pretrained, capsys):
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    for start, message in (("", "start from .* already has other weights"), ("__scratch", "")):
        made = trainer(f"nnUNetTransferPlans_Merged{start}", run=False)
        made.initialize()
        load_pretrained_weights(made.network, str(pretrained.checkpoint), verbose=False)
        if message:
            with pytest.raises(ValueError, match=message):
                made.on_train_start()
        else:
            made.on_train_start()
            assert "Weights were loaded by nnU-Net's -pretrained_weights" in capsys.readouterr().out


def test_the_heads_have_a_rise_of_their_own_before_the_warm_up():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = WarmupDecayLR(optimizer, 10, warmup_epochs=2, before=4)
    assert [schedule.factor(epoch) for epoch in range(7)] == pytest.approx([0.25, 0.5, 0.75, 1, 1 / 3, 2 / 3, 1])
    assert schedule.factor(9) == pytest.approx(0.25**0.9)
    with pytest.raises(ValueError, match=r"warmup_epochs \(5\) and the epochs before them \(6\) must be fewer than"):
        WarmupDecayLR(optimizer, 10, warmup_epochs=5, before=6)
    assert frozen_parts(FineTuning(heads_only_epochs=2, freeze_encoder=True), 1) == {"encoder", "decoder"}
    assert frozen_parts(FineTuning(heads_only_epochs=2, freeze_encoder=True), 2) == {"encoder"}


def test_a_run_with_phases_continues_and_keeps_its_report(pretrained):
    folder = pretrained.root / "nnUNet_preprocessed/Dataset901_Target"
    plans = json.loads((folder / "nnUNetTransferPlans_Merged.json").read_text(encoding="utf-8"))
    plans["plans_name"] = "Phases"
    plans["nnunet_pretrain"]["fine_tuning"].update(heads_only_epochs=1, layer_decay=0.8)
    cases = [sorted(path.stem for path in (folder / "nnUNetTransferPlans_Merged_3d_fullres").glob("*.pkl"))]
    plans["nnunet_pretrain"]["folds"] = [{"train": cases[0][:1], "val": cases[0][1:]}]
    (folder / "Phases.json").write_text(json.dumps(plans), encoding="utf-8")
    shorten(folder / "Phases.json", num_epochs=1, warmup_epochs=0, num_iterations_per_epoch=1)
    shorten_more = {"num_epochs": 3, "warmup_epochs": 1, "num_iterations_per_epoch": 1}
    train = [script("nnUNetv2_train"), "901", "3d_fullres", "0", "-device", "cpu", "-tr", "nnUNetTrainerTransfer"]
    refused = [sys.executable, "-c", "from nnunetv2.run.run_training import run_training_entry as r; r()", *train[1:]]
    with pytest.raises(AssertionError, match=r"warmup_epochs \(0\) and the epochs before them \(1\) must be fewer"):
        run([*refused, "-p", "Phases"], pretrained.environment)
    shorten(folder / "Phases.json", **shorten_more)
    log = run([*train, "-p", "Phases"], pretrained.environment)
    assert "Frozen from here on: decoder, encoder" in log
    assert "Frozen from here on: nothing" in log
    assert "Fold 0 of the plans: 1 to train, 1 held out." in log
    fold = pretrained.root / "nnUNet_results/Dataset901_Target/nnUNetTrainerTransfer__Phases__3d_fullres/fold_0"
    report = json.loads((fold / "transfer_report.json").read_text(encoding="utf-8"))
    kept = read_checkpoint(fold / "checkpoint_final.pth")["init_args"]["nnunet_pretrain"]["transfer_report"]
    assert json.loads(json.dumps(kept)) == report
