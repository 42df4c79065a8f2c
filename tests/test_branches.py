"""Branches: label sets as each sees them, the network's routes, what idle branches keep, and the order of domains."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from small_checkpoints import NETWORKS

from nnunet_pretrain.labels import LabelScheme, LabelSetTable, LabelSpace
from nnunet_pretrain.labels.branches import branch_tables
from nnunet_pretrain.networks.branches import BranchedNetwork
from nnunet_pretrain.networks.parts import parts_of
from nnunet_pretrain.training.domain_batches import domain_order
from nnunet_pretrain.training.domain_supervision import BranchLosses
from nnunet_pretrain.training.label_set_loss import LabelSetLoss
from nnunet_pretrain.training.label_sets import LabelSets

SPACE = LabelSpace(name="test", structures=("kidney_left", "kidney_right", "liver", "liver_tumor", "heart"))
SCHEMES = {
    "KiTS": {0: ("background", "liver", "liver_tumor", "heart"), 1: ("kidney_left", "kidney_right")},
    "LiTS": {0: ("background", "kidney_left", "kidney_right", "heart"), 3: ("liver",), 4: ("liver_tumor",)},
    "LiTS/organ only": {0: ("background", "kidney_left", "kidney_right", "heart"), 3: ("liver", "liver_tumor")},
    "Heart": {0: ("background", "kidney_left", "kidney_right", "liver", "liver_tumor"), 5: ("heart",), 6: SPACE.names},
}
SOURCE_OF_CASE = {"k1": "KiTS", "l1": "LiTS", "l2": "LiTS", "h1": "Heart"}
CHANNELS = {"A": 3, "B.1": 4, "C": 2}


@pytest.fixture
def tables():
    schemes = tuple(LabelScheme(name=name, sets=sets) for name, sets in SCHEMES.items())
    table = LabelSetTable(SPACE, schemes, {"k1": 0, "l1": 1, "l2": 2, "h1": 3})
    return branch_tables(table, SOURCE_OF_CASE)


def network(kind="unet", name="PlainConvUNet", branches=CHANNELS):
    class_name, arguments, imported = copy.deepcopy(NETWORKS[name])
    torch.manual_seed(0)
    return BranchedNetwork(1, 99, class_name, arguments, imported, branches, kind, arguments["strides"])


def test_a_branch_has_a_channel_for_each_id_of_its_source_and_no_other(tables):
    assert {name: table.channel_names for name, table in tables.items()} == {
        "KiTS": ("background", "kidney_left_or_kidney_right"),
        "LiTS": ("background", "liver", "liver_tumor"),
        "Heart": ("background", "heart"),
    }
    assert tables["LiTS"].stored_ids == (0, 3, 4)


def test_what_a_branch_has_no_channel_for_leaves_the_label_sets(tables):
    lits = tables["LiTS"]
    assert lits.member.shape == (4, 7, 3)
    assert lits.member[1, [0, 3, 4]].tolist() == [[True, False, False], [False, True, False], [False, False, True]]
    assert lits.member[2, 3].tolist() == [False, True, True]  # a case without tumour labels: liver may be tumour
    assert lits.member[3].all(), "cases of other sources teach the branch nothing"
    assert tables["Heart"].member[3, 6].all(), "ignore is everything"


def test_groups_of_a_branch_are_scored_under_the_dataset_s_ids(tables):
    lits = tables["LiTS"]
    assert lits.groups == ("liver", "liver+liver_tumor", "liver_tumor")
    assert [lits.groups[i] for i in lits.group_of_id[1, [3, 4]]] == ["liver", "liver_tumor"]
    assert (lits.group_of_id[[0, 3]] == -1).all()


def test_a_source_that_stores_nothing_is_refused():
    space = LabelSpace(name="test", structures=("liver",))
    schemes = (LabelScheme(name="full", sets={0: ("background",), 1: ("liver",)}),)
    schemes += (LabelScheme(name="empty", sets={0: ("background", "liver")}),)
    with pytest.raises(ValueError, match="'empty' stores no structure"):
        branch_tables(LabelSetTable(space, schemes, {"a": 0, "b": 1}), {"a": "full", "b": "empty"})


@pytest.mark.parametrize("kind", ["unet", "simple"])
@pytest.mark.parametrize("name", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_each_sample_of_a_mixed_batch_gets_what_its_branch_alone_gives(kind, name):
    branched = network(kind, name).eval()
    x = torch.rand(3, 1, 16, 16, 16)
    branched.route = ("B.1", "A", "B.1")
    mixed = branched(x)
    assert {domain: tuple(output.shape[:2]) for domain, output in mixed.items()} == {"B.1": (2, 4), "A": (1, 3)}
    for domain, places in (("B.1", [0, 2]), ("A", [1])):
        branched.route = domain
        torch.testing.assert_close(branched(x[places]), mixed[domain])


def test_a_branch_computes_what_the_ordinary_network_with_its_weights_computes():
    branched = network()
    class_name, arguments, imported = copy.deepcopy(NETWORKS["PlainConvUNet"])
    alone = get_network_from_plans(class_name, arguments, imported, 1, 4, deep_supervision=False)
    weights = branched.state_dict()
    names = {
        n: n.replace("decoder.encoder.", "encoder.").replace("decoder.", "branches.B_1.") for n in alone.state_dict()
    }
    alone.load_state_dict({name: weights[theirs] for name, theirs in names.items()})
    x = torch.rand(2, 1, 16, 16, 16)
    branched.route = "B.1"
    assert torch.equal(branched(x), alone(x))


def test_switching_deep_supervision_reaches_every_branch():
    branched = network()
    branched.route = "C"
    x = torch.rand(1, 1, 16, 16, 16)
    for enabled, kind in ((True, list), (False, torch.Tensor)):
        branched.decoder.deep_supervision = enabled
        assert isinstance(branched(x), kind)
        assert branched.decoder.deep_supervision is enabled


def test_parts_of_a_branched_network():
    parts = parts_of(network())
    assert parts["encoder.stages.0.0.convs.0.conv.weight"] == "encoder"
    assert parts["branches.A.transpconvs.0.weight"] == "decoder"
    assert parts["branches.A.seg_layers.0.weight"] == "heads"


def test_without_a_route_the_network_says_how_to_predict():
    with pytest.raises(ValueError, match=r"export .* --branch"):
        network()(torch.rand(1, 1, 16, 16, 16))


def test_networks_that_cannot_be_shared_and_equal_names_are_refused():
    class_name, kwargs, imported = copy.deepcopy(NETWORKS["SegResNet"])
    with pytest.raises(ValueError, match="must have an `encoder` and a `decoder`"):
        BranchedNetwork(1, 1, class_name, kwargs, imported, {"A": 2}, "unet", [[1, 1, 1]])
    with pytest.raises(ValueError, match="differ in more than"):
        network(branches={"A.1": 2, "A_1": 2})


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("route", ["A", ("A", "C")])
def test_idle_branches_stay_bit_identical_in_weights_and_momentum(optimizer_class, route):
    branched = network()
    options = {"momentum": 0.99, "nesterov": True} if optimizer_class is torch.optim.SGD else {}
    optimizer = optimizer_class(branched.parameters(), lr=0.1, weight_decay=0.1, **options)

    def step(on):
        branched.route = on
        output = branched(torch.rand(2, 1, 16, 16, 16))
        optimizer.zero_grad(set_to_none=True)
        sum(o.square().mean() for o in (output.values() if isinstance(output, dict) else [output])).backward()
        optimizer.step()

    for domain in CHANNELS:
        step(domain)  # every branch has momentum now
    names = dict(branched.named_parameters())
    before = {n: (p.detach().clone(), copy.deepcopy(optimizer.state[p])) for n, p in names.items()}
    step(route)
    active = ("A", "C") if isinstance(route, tuple) else ("A",)
    idle = [n for n in names if n.startswith("branches.") and n.split(".")[1] not in active]
    assert idle
    for name in idle:
        assert torch.equal(names[name], before[name][0])
        for key, value in before[name][1].items():
            assert torch.equal(torch.as_tensor(optimizer.state[names[name]][key]), torch.as_tensor(value)), (name, key)
    moved = [n for n in names if not torch.equal(names[n], before[n][0])]
    assert any(n.startswith("encoder.") for n in moved)
    assert all(any(n.startswith(f"branches.{domain}.") for n in moved) for domain in active)


def test_the_loss_of_a_mixed_batch_is_the_mean_over_its_samples(tables):
    sets = {domain: LabelSets(table) for domain, table in tables.items()}
    losses = BranchLosses({d: LabelSetLoss(own, batch_dice=False, weight_dice=0) for d, own in sets.items()})
    rows = LabelSets(tables["LiTS"]).encode(torch.tensor([3, 0, 1]).view(3, 1, 1, 1, 1), torch.tensor([1, 1, 0]))
    logits = {"LiTS": torch.randn(2, 3, 1, 1, 1), "KiTS": torch.randn(1, 2, 1, 1, 1)}
    losses.route = ("LiTS", "LiTS", "KiTS")
    found = losses(logits, rows)
    lits = torch.nn.functional.cross_entropy(logits["LiTS"].flatten(1), torch.tensor([1, 0]))
    kits = torch.nn.functional.cross_entropy(logits["KiTS"].flatten(1), torch.tensor([1]))
    torch.testing.assert_close(found, (2 * lits + kits) / 3)
    torch.testing.assert_close(losses.latest["KiTS"], kits)


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_domains_are_drawn_as_declared_and_none_is_left_out(alpha):
    numbers, steps, epochs = {"small": 3, "middle": 40, "large": 400}, 25, 400
    weights = np.array(list(numbers.values()), dtype=float) ** (1 - alpha)
    expected = weights / weights.sum() * steps
    counts = [Counter(domain_order(numbers, alpha, steps, (0, epoch))) for epoch in range(epochs)]
    assert all(sum(count.values()) == steps and min(count[d] for d in numbers) > 0 for count in counts)
    if expected.min() >= 1:  # otherwise the rule that no domain is left out lifts the rarest
        means = [np.mean([count[domain] for count in counts]) for domain in numbers]
        np.testing.assert_allclose(means, expected, atol=0.1)
        assert all(abs(count[d] - e) < 1 for count in counts for d, e in zip(numbers, expected, strict=True))


def test_the_order_of_domains_follows_from_seed_and_epoch():
    numbers = {"a": 5, "b": 20}
    assert domain_order(numbers, 0.5, 30, (1, 2)) == domain_order(numbers, 0.5, 30, (1, 2))
    assert domain_order(numbers, 0.5, 30, (1, 2)) != domain_order(numbers, 0.5, 30, (1, 3))
    assert domain_order(numbers, 0.5, 1, (1, 2))[0] in numbers


def test_each_branch_learns_its_own_labels_of_the_same_image(tables):
    """What one domain calls structure is background for the other; with one encoder both are learnt by heart."""
    torch.manual_seed(0)
    branched = network(branches={"LiTS": 3, "KiTS": 2})
    image = torch.randn(1, 1, 16, 16, 16) / 5
    image[..., 2:8, 2:8, 2:8] += 2
    image[..., 9:15, 9:15, 9:15] -= 2
    stored = {domain: torch.zeros(1, 1, 16, 16, 16, dtype=torch.long) for domain in ("LiTS", "KiTS")}
    stored["LiTS"][..., 2:8, 2:8, 2:8], stored["LiTS"][..., 9:15, 9:15, 9:15] = 3, 4
    stored["KiTS"][..., 9:15, 9:15, 9:15] = 1
    sets = {domain: LabelSets(tables[domain]) for domain in stored}
    losses = BranchLosses({domain: LabelSetLoss(own, batch_dice=False) for domain, own in sets.items()})
    schemes = {"LiTS": 1, "KiTS": 0}
    optimizer = torch.optim.AdamW(branched.parameters(), lr=1e-2)
    for step in range(240):
        branched.route = losses.route = ("LiTS", "KiTS")[step % 2]
        rows = sets[branched.route].encode(stored[branched.route], torch.tensor([schemes[branched.route]]))
        optimizer.zero_grad(set_to_none=True)
        losses(branched(image), rows).backward()
        optimizer.step()
    for domain, ids in stored.items():
        branched.route = domain
        found = torch.tensor(tables[domain].stored_ids)[branched(image).argmax(1)][:, None]
        for structure in ids.unique()[1:]:
            hit = ((found == structure) & (ids == structure)).sum()
            assert 2 * hit / ((found == structure).sum() + (ids == structure).sum()) > 0.9, (domain, structure)
