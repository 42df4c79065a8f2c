"""The losses of other systems against their formulas, written a second time without their loops."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch.nn import functional

from nnunet_pretrain.labels import LabelScheme, LabelSetTable, LabelSpace
from nnunet_pretrain.training.label_set_loss import LabelSetLoss, LabelSets

_FILE = Path(__file__).parents[1] / "benchmarks/peer_losses.py"
_SPEC = importlib.util.spec_from_file_location("peer_losses", _FILE)
peers = importlib.util.module_from_spec(_SPEC)
sys.modules["peer_losses"] = peers
_SPEC.loader.exec_module(peers)

SPACE = LabelSpace(name="five", structures=("liver", "liver_tumor", "kidney_left", "kidney_right", "kidney_tumor"))
COMPLETE = LabelScheme(name="complete", sets={i: (name,) for i, name in enumerate(SPACE.names)})
LIVER = LabelScheme(
    name="liver",
    sets={
        0: ("background", "kidney_left", "kidney_right", "kidney_tumor"),
        1: ("liver", "liver_tumor"),
        SPACE.ignore_id: SPACE.names,
    },
)
KIDNEYS = LabelScheme(
    name="kidneys",
    sets={0: ("background", "liver", "liver_tumor"), 3: ("kidney_left", "kidney_right"), 5: ("kidney_tumor",)},
)
SIDES = LabelScheme(
    name="sides",
    sets={0: ("background",), 3: ("kidney_left", "kidney_tumor"), 4: ("kidney_right", "kidney_tumor")},
)
TABLE = LabelSetTable(SPACE, (COMPLETE, LIVER, KIDNEYS, SIDES), {})
SETS = LabelSets(TABLE)
SHAPE = (3, 4, 5)


def example(schemes, seed=0):
    """Random logits, and rows with ids that each sample's scheme knows."""
    generator = np.random.default_rng(seed)
    ids = np.stack([generator.choice(list(TABLE.schemes[s].sets), size=(1, *SHAPE)) for s in schemes])
    logits = torch.from_numpy(generator.normal(size=(len(schemes), len(SPACE.names), *SHAPE)) * 2).float()
    return logits.requires_grad_(), SETS.encode(torch.from_numpy(ids), torch.tensor(schemes))


def one_hot(rows):
    ids = rows[:, 0] % TABLE.num_ids
    return functional.one_hot(ids, TABLE.num_ids).movedim(-1, 1)[:, : len(SPACE.names)].float()


def valid_of(schemes):
    return peers.valid_classes(TABLE)[schemes].float()


def test_valid_classes_are_those_with_an_id_of_their_own():
    valid = peers.valid_classes(TABLE)
    names = [{SPACE.names[i] for i in row.nonzero()[:, 0].tolist()} for row in valid]
    assert names[0] == set(SPACE.structures)
    assert names[1] == {"liver"}  # with the tumour in it
    assert names[2] == {"kidney_tumor"}  # an unsplit kidney is no left kidney
    assert names[3] == {"kidney_left", "kidney_right"}


def test_multitalent_is_its_formula():
    schemes = [0, 1, 3]
    logits, rows = example(schemes)
    valid, g, p = valid_of(schemes), one_hot(rows), logits.sigmoid()
    bce = functional.binary_cross_entropy_with_logits(logits, g, reduction="none").mean((2, 3, 4))
    overlap = (p * g).sum((2, 3, 4)) * valid
    total = (p + g).sum((2, 3, 4)) * valid
    dice = 2 * overlap.sum(0) / total.sum(0).clamp_min(1e-7)
    expected = (bce * valid).sum() - dice.sum()
    assert peers.MultiTalentLoss(TABLE)(logits, rows).item() == pytest.approx(expected.item(), rel=1e-5)


def test_clip_template_is_its_formula():
    schemes = [0, 1, 3]
    logits, rows = example(schemes)
    valid, g, p = valid_of(schemes), one_hot(rows), logits.sigmoid()
    bce = functional.binary_cross_entropy_with_logits(logits, g, reduction="none").mean((2, 3, 4))
    by_slice = 1 - 2 * (p * g).sum((3, 4)) / (p.sum((3, 4)) + g.sum((3, 4)) + 1)
    expected = ((bce + by_slice.mean(2)) * valid).sum() / valid.sum()
    assert peers.ClipTemplateLoss(TABLE)(logits, rows).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("loss", [peers.MultiTalentLoss, peers.ClipTemplateLoss])
def test_sigmoid_losses_leave_invalid_classes_alone(loss):
    schemes = [1, 2]
    logits, rows = example(schemes)
    loss(TABLE)(logits, rows).backward()
    moved = (logits.grad.abs().sum((2, 3, 4)) > 0).tolist()
    assert moved == (valid_of(schemes) > 0).tolist()


@pytest.mark.parametrize("loss", [peers.MultiTalentLoss, peers.ClipTemplateLoss])
def test_sigmoid_losses_without_a_valid_class_are_zero(loss):
    nothing = LabelSetTable(SPACE, (COMPLETE, LabelScheme(name="none", sets={0: SPACE.names})), {})
    logits, rows = example([0])
    value = loss(nothing)(logits, torch.full_like(rows, nothing.num_ids))
    value.backward()
    assert value.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("name", ["MarginalLoss", "LeafDiceLoss", "MarginalizedDiceLoss", "ExclusiveDiceLoss"])
def test_cross_entropy_is_that_of_the_label_set_loss(name):
    logits, rows = example([0, 1, 2, 3])
    ours = LabelSetLoss(SETS, batch_dice=False, weight_dice=0)(logits, rows).item()
    loss = getattr(peers, name)(SETS)
    p = logits.flatten(2).softmax(1)
    allowed = SETS.member.flatten(0, 1)[rows.flatten(1)].transpose(1, 2)
    dice = loss.dice(p, allowed, rows.flatten(1)).item()
    assert loss(logits, rows).item() == pytest.approx(ours - dice, abs=1e-5)
    assert (dice == 0) == (name == "MarginalLoss")


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("name", ["LeafDiceLoss", "MarginalizedDiceLoss"])
def test_label_set_dice_is_mean_class_dice_on_complete_labels(name, squared):
    logits, rows = example([0, 0])
    p, g, power = logits.softmax(1), one_hot(rows), 2 if squared else 1
    total = (p**power).sum((2, 3, 4)) + g.sum((2, 3, 4))
    expected = (2 * (p * g).sum((2, 3, 4)) / (total + 1e-5)).mean()
    cross_entropy = functional.cross_entropy(logits, rows[:, 0] % TABLE.num_ids)
    loss = getattr(peers, name)(SETS, squared=squared)(logits, rows)
    assert loss.item() == pytest.approx((cross_entropy - expected).item(), abs=1e-5)


def test_leaf_dice_counts_leaves_only():
    logits, rows = example([2])
    p = logits.flatten(2).softmax(1)
    tumor = (rows.flatten() % TABLE.num_ids == 5).float()  # the only id of the scheme that is a leaf
    c = SPACE.id_of("kidney_tumor")
    expected = 2 * (p[0, c] * tumor).sum() / ((p[0, c] ** 2).sum() + tumor.sum() + 1e-5) / len(SPACE.names)
    allowed = SETS.member.flatten(0, 1)[rows.flatten(1)].transpose(1, 2)
    assert peers.LeafDiceLoss(SETS).dice(p, allowed, rows.flatten(1)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_marginalized_dice_does_not_see_how_mass_lies_inside_a_set():
    schemes = [1, 2, 3]
    logits, rows = example(schemes)
    allowed = SETS.member.flatten(0, 1)[rows.flatten(1)].transpose(1, 2)
    p = logits.detach().flatten(2).softmax(1)
    share = allowed.float() / allowed.sum(1, keepdim=True)
    spread = torch.where(allowed, (p * allowed).sum(1, keepdim=True) * share, p)
    loss = peers.MarginalizedDiceLoss(SETS)
    given, moved = (loss.dice(values, allowed, rows.flatten(1)).item() for values in (p, spread))
    assert given == pytest.approx(moved, abs=1e-6)
    assert loss.dice(share, allowed, rows.flatten(1)).item() > given


def test_exclusive_hits_equal_ours_for_disjoint_sets_only():
    for schemes, equal in (([0, 1, 2], True), ([3], False)):
        logits, rows = example(schemes)
        ours = LabelSetLoss(SETS, batch_dice=False)(logits, rows).item()
        exclusive = peers.ExclusiveDiceLoss(SETS)(logits, rows).item()
        assert (exclusive == pytest.approx(ours, abs=1e-5)) is equal


def test_a_shared_structure_is_a_hit_for_ours_and_neither_hit_nor_wrong_for_exclusive():
    rows = SETS.encode(torch.full((1, 1, *SHAPE), 3), torch.tensor([3]))
    by_structure = {}
    for name in ("kidney_left", "kidney_tumor", "kidney_right"):
        logits = torch.full((1, len(SPACE.names), *SHAPE), -30.0)
        logits[:, SPACE.id_of(name)] = 30
        p = logits.flatten(2).softmax(1)
        allowed = SETS.member.flatten(0, 1)[rows.flatten(1)].transpose(1, 2)
        by_structure[name] = peers.ExclusiveDiceLoss(SETS).dice(p, allowed, rows.flatten(1)).item()
    # Two ids are decidable: the left kidney, and the right one, which no voxel has.
    assert by_structure["kidney_left"] == pytest.approx((1 + 1) / 2, abs=1e-4)
    assert by_structure["kidney_tumor"] == pytest.approx((0 + 1) / 2, abs=1e-4)
    assert by_structure["kidney_right"] == pytest.approx(0, abs=1e-4)


def test_missing_is_background_is_nnunets_loss_on_stored_ids():
    stock = DC_and_CE_loss(
        {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, dice_class=MemoryEfficientSoftDiceLoss
    )
    logits, rows = example([2, 3])
    expected = stock(logits, rows % TABLE.num_ids).item()
    assert peers.MissingIsBackground(stock, TABLE.num_ids)(logits, rows).item() == pytest.approx(expected)
    assert expected != pytest.approx(LabelSetLoss(SETS, batch_dice=False)(logits, rows).item(), abs=1e-2)
