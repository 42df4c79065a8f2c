"""The label-set loss against finite differences, against nnU-Net's loss, and its metrics."""

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from nnunet_pretrain.labels import LabelScheme, LabelSetTable, LabelSpace
from nnunet_pretrain.training.label_set_loss import LabelSetLoss
from nnunet_pretrain.training.label_set_metrics import counts_of_case
from nnunet_pretrain.training.label_sets import LabelSets

SPACE = LabelSpace(name="five", structures=("liver", "liver_tumor", "kidney_left", "kidney_right", "kidney_tumor"))
COMPLETE = LabelScheme(name="complete", sets={i: (name,) for i, name in enumerate(SPACE.names)})
WITH_IGNORE = LabelScheme(name="with ignore", sets={**COMPLETE.sets, SPACE.ignore_id: SPACE.names})
ORGANS = LabelScheme(
    name="organs",
    sets={
        0: ("background",),
        1: ("liver", "liver_tumor"),
        3: ("kidney_left", "kidney_tumor"),
        4: ("kidney_right", "kidney_tumor"),
    },
)
KIDNEYS = LabelScheme(
    name="kidneys",
    sets={0: ("background", "liver", "liver_tumor"), 3: ("kidney_left", "kidney_right"), 5: ("kidney_tumor",)},
)
TABLE = LabelSetTable(SPACE, (COMPLETE, WITH_IGNORE, ORGANS, KIDNEYS), {})
SHAPE = (4, 5, 6)


def example(schemes, seed=0, dtype=torch.float64):
    """Random logits and, per sample, random stored ids that its scheme knows."""
    generator = np.random.default_rng(seed)
    ids = [generator.choice(list(TABLE.schemes[s].sets), size=(1, *SHAPE)) for s in schemes]
    logits = torch.from_numpy(generator.normal(size=(len(schemes), len(SPACE.names), *SHAPE)) * 2).to(dtype)
    return logits.requires_grad_(), torch.from_numpy(np.stack(ids))


def label_set_loss(logits, target, schemes, **kwargs):
    sets = LabelSets(TABLE)
    return LabelSetLoss(sets, **{"batch_dice": False, **kwargs})(logits, sets.encode(target, torch.tensor(schemes)))


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("scheme", [0, 1])
def test_equals_nnunet_on_complete_labels(batch_dice, scheme):
    for seed in range(3):
        logits, target = example([scheme] * 3, seed, torch.float32)
        stock = DC_and_CE_loss(
            {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False},
            {},
            ignore_label=SPACE.ignore_id if scheme else None,
            dice_class=MemoryEfficientSoftDiceLoss,
        )
        ours = label_set_loss(logits, target, [scheme] * 3, batch_dice=batch_dice)
        assert ours.item() == pytest.approx(stock(logits, target).item(), abs=1e-6)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_gradient_is_that_of_finite_differences(batch_dice):
    schemes = [2, 3, 1]
    logits, target = example(schemes)
    label_set_loss(logits, target, schemes, batch_dice=batch_dice).backward()
    generator = np.random.default_rng(1)
    step = 1e-6
    for _ in range(60):
        where = tuple(generator.integers(size) for size in logits.shape)
        values = []
        for sign in (1, -1):
            moved = logits.detach().clone()
            moved[where] += sign * step
            values.append(label_set_loss(moved, target, schemes, batch_dice=batch_dice).item())
        assert logits.grad[where].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-8)


def test_cross_entropy_gradient_is_the_formula_inside_and_outside_the_set():
    schemes = [2, 3]
    logits, target = example(schemes)
    label_set_loss(logits, target, schemes, weight_dice=0).backward()
    p = logits.detach().softmax(1)
    voxels = target.numel()
    for sample, scheme in enumerate(schemes):
        member = torch.from_numpy(TABLE.member[scheme])[target[sample, 0]].movedim(-1, 0)
        mass = (p[sample] * member).sum(0, keepdim=True)
        expected = torch.where(member, p[sample] - p[sample] / mass, p[sample]) / voxels
        assert torch.allclose(logits.grad[sample], expected, atol=1e-12)
        assert (logits.grad[sample][~member] > 0).all()


def test_an_ignored_voxel_has_no_gradient_and_does_not_dilute_the_mean():
    logits, target = example([1])
    target[0, 0, 0] = SPACE.ignore_id
    loss = label_set_loss(logits, target, [1])
    loss.backward()
    assert (logits.grad[0, :, 0] == 0).all()
    assert (logits.grad[0, :, 1:].abs().sum(0)[target[0, 0, 1:] != SPACE.ignore_id] > 0).all()
    cut, cut_target = logits.detach()[:, :, 1:], target[:, :, 1:]
    assert loss.item() == pytest.approx(label_set_loss(cut, cut_target, [1]).item(), abs=1e-12)
    everything_ignored = label_set_loss(logits, torch.full_like(target, SPACE.ignore_id), [1], weight_dice=0)
    assert everything_ignored.item() == 0


def test_an_unannotated_organ_costs_nothing_on_background():
    """KiTS background: predicting liver there is as good as predicting background."""
    target = torch.zeros(1, 1, *SHAPE, dtype=torch.long)
    losses = []
    for channel in (0, 1, 2, 5):
        logits = torch.zeros(1, len(SPACE.names), *SHAPE, dtype=torch.float64)
        logits[:, channel] = 30
        losses.append(label_set_loss(logits, target, [3], weight_dice=0).item())
    assert losses[:3] == pytest.approx([0, 0, 0], abs=1e-9)
    assert losses[3] > 20  # a kidney tumour is annotated there


def test_dice_of_disjoint_sets_is_the_dice_of_summed_probabilities():
    logits, target = example([3, 3])
    p = logits.detach().softmax(1)
    dice = []
    for sample in range(2):
        for stored_id, label_set in KIDNEYS.sets.items():
            if stored_id:
                q = sum(p[sample, SPACE.id_of(s)] for s in label_set)
                reference = target[sample, 0] == stored_id
                dice.append((2 * q[reference].sum() + 1e-5) / (q.sum() + reference.sum() + 1e-5))
    ours = label_set_loss(logits, target, [3, 3], weight_ce=0)
    assert ours.item() == pytest.approx(-torch.stack(dice).mean().item(), abs=1e-12)


def test_a_lesion_of_unknown_side_counts_for_the_kidney_it_lies_in():
    """In the organ scheme a predicted kidney tumour is right in either kidney and wrong elsewhere."""
    reference = np.array([3, 3, 3, 4, 4, 0])
    prediction = np.array([3, 5, 4, 5, 4, 5])
    tp, fp, fn = counts_of_case(LabelSets(TABLE), 2, reference, prediction)
    left, right = (TABLE.groups.index(f"{side}+kidney_tumor") for side in ("kidney_left", "kidney_right"))
    assert (tp[left], fn[left], fp[left]) == (2, 1, 1)  # the tumour on background
    assert (tp[right], fn[right], fp[right]) == (2, 0, 2)  # the swapped voxel and the tumour on background


def test_a_prediction_on_unannotated_background_is_no_false_positive():
    reference = np.array([0, 0, 3, 5])
    prediction = np.array([1, 2, 4, 5])
    tp, fp, fn = counts_of_case(LabelSets(TABLE), 3, reference, prediction)
    assert fp.sum() == 0
    assert fn.sum() == 0
    assert tp.sum() == 2


def test_half_precision_stays_finite():
    logits, target = example([2, 3], dtype=torch.float32)
    extreme = (logits.detach() * 4000).half().requires_grad_()
    loss = label_set_loss(extreme, target, [2, 3])
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(extreme.grad).all()


def reference(logits, target, schemes):
    """The marginal cross-entropy written out with dense masks, in double precision."""
    allowed = torch.from_numpy(TABLE.member)[torch.tensor(schemes)[:, None], target.flatten(1)].transpose(1, 2)
    z = logits.double().flatten(2)
    inside = z.masked_fill(~allowed, -torch.inf).logsumexp(1)
    informative = ~allowed.all(1)
    return ((z.logsumexp(1) - inside) * informative).sum() / informative.sum()


@pytest.mark.parametrize("scale", [1, 30, 300])
def test_extreme_logits_keep_loss_and_gradient_right(scale):
    logits, target = example([2, 3], seed=5)
    exact = (logits.detach() * scale).requires_grad_()
    reference(exact, target, [2, 3]).backward()
    single = (logits.detach() * scale).float().requires_grad_()
    loss = label_set_loss(single, target, [2, 3], weight_dice=0)
    loss.backward()
    assert loss.item() == pytest.approx(reference(single, target, [2, 3]).item(), rel=1e-5)
    torch.testing.assert_close(single.grad.double(), exact.grad, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gradients_are_those_of_single_precision(dtype):
    logits, target = example([2, 3], seed=6, dtype=dtype)
    single = logits.detach().float().requires_grad_()
    for z in (logits, single):
        label_set_loss(z, target, [2, 3], batch_dice=True).backward()
    assert logits.grad.dtype == dtype
    torch.testing.assert_close(logits.grad.float(), single.grad, rtol=1e-2, atol=1e-5)


def test_parts_of_any_size_give_the_same(monkeypatch):
    from nnunet_pretrain.training import label_set_loss as module

    found = []
    for size in (1, 50, 2**20):
        monkeypatch.setitem(module.CHUNK, "cpu", size)
        logits, target = example([2, 3, 0], seed=7)
        label_set_loss(logits, target, [2, 3, 0], batch_dice=True).backward()
        found.append(logits.grad)
    torch.testing.assert_close(found[0], found[2], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found[1], found[2], rtol=1e-12, atol=1e-14)


def test_the_voxel_wise_part_can_be_traced_whole():
    from nnunet_pretrain.training import label_set_loss as module

    logits, target = example([2, 3], seed=8, dtype=torch.float32)
    sets = LabelSets(TABLE)
    z, ids, outside = logits.detach().flatten(2), target.flatten(1), sets.outside[torch.tensor([2, 3])]
    traced = torch.compile(module.dense_forward, backend="aot_eager", fullgraph=True)
    plain, compiled = module.dense_forward(z, ids, outside), traced(z, ids, outside)
    for a, b in zip(plain, compiled, strict=True):
        torch.testing.assert_close(a, b)
    arguments = (z, ids, outside, *plain[:2], torch.randn(plain[0].shape), torch.randn(plain[2].shape))
    backward = torch.compile(module.dense_backward, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(backward(*arguments), module.dense_backward(*arguments))


def test_nothing_of_the_logits_size_is_kept_but_the_logits():
    logits, target = example([2, 3], seed=9, dtype=torch.float32)
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        label_set_loss(logits, target, [2, 3], batch_dice=True)
    large = [pointer for pointer, size in kept.items() if size >= logits.numel()]
    assert large == [logits.data_ptr()]


def test_the_cost_does_not_depend_on_the_number_of_sources():
    from torch.utils.flop_counter import FlopCounterMode

    schemes = tuple(
        LabelScheme(name=f"{scheme.name} {i}", sets=scheme.sets) for i in range(50) for scheme in TABLE.schemes
    )
    counts = []
    for table in (TABLE, LabelSetTable(SPACE, schemes, {})):
        sets = LabelSets(table)
        logits, target = example([2, 3])
        rows = sets.encode(target, torch.tensor([2, 3]))
        kept = 0

        def pack(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with FlopCounterMode(display=False) as flops, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            LabelSetLoss(sets, batch_dice=False)(logits, rows).backward()
        counts.append((flops.get_total_flops(), kept))
    assert counts[0] == counts[1]


def test_the_whole_loss_runs_inside_torch_compile():
    logits, target = example([2, 3], seed=10, dtype=torch.float32)
    sets = LabelSets(TABLE)
    rows = sets.encode(target, torch.tensor([2, 3]))
    loss = LabelSetLoss(sets, batch_dice=True)
    found = []
    for function in (loss, torch.compile(loss, backend="aot_eager")):
        logits.grad = None
        value = function(logits, rows)
        value.backward()
        found.append((value.item(), logits.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1])
