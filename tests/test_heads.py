"""Heads by structure name: which rows are taken, and what their combination promises."""

import pytest
import torch

from nnunet_pretrain.transfer.heads import Outputs, combine_rows, describe_heads, match_heads, outputs_of

OLD = Outputs(
    ("background", "liver", "kidney_left", "kidney_right", "liver_tumor"), untaught=frozenset({"liver_tumor"})
)


def test_names_are_matched_by_the_synonym_table_groups_included_and_untaught_rows_never():
    new = Outputs(("background", "Hepar", "kidneys", "liver_tumor", "unheard of"))
    assert match_heads(OLD, new) == {
        "background": ("background",),
        "Hepar": ("liver",),
        "kidneys": ("kidney_left", "kidney_right"),
    }
    assert match_heads(Outputs(("background", "Unheard-of")), new)["unheard of"] == ("Unheard-of",)
    assert match_heads(Outputs(("kidney_left",)), Outputs(("kidney",))) == {}


def test_outputs_are_read_as_nnunet_orders_them():
    labels = {"background": 0, "spleen": 2, "liver": 1, "ignore": 3}
    assert outputs_of({"labels": labels}) == Outputs(("background", "liver", "spleen"))
    regions = {"background": 0, "whole": [1, 2], "core": [2]}
    assert outputs_of({"labels": regions, "regions_class_order": [1, 2]}) == Outputs(("whole", "core"), True)


def rows(old, new, heads, seed=0):
    """A random head of the old outputs, turned into one of the new; returns both applied to random features."""
    torch.manual_seed(seed)
    features = torch.randn(50, 6).double()
    weight, bias = torch.randn(len(old.names), 6).double(), torch.randn(len(old.names)).double()
    start = (torch.randn(len(new.names), 6).double(), torch.randn(len(new.names)).double())
    made = [combine_rows(w, s, heads, old, new, bias=w.ndim == 1) for w, s in zip((weight, bias), start, strict=True)]
    return features @ weight.T + bias, features @ made[0].T + made[1], features @ start[0].T + start[1]


def test_one_row_is_copied_and_nothing_leaves_the_start():
    new = Outputs(("background", "spleen", "liver"))
    old_logits, logits, start = rows(OLD, new, match_heads(OLD, new))
    assert torch.allclose(logits[:, [0, 2]], old_logits[:, [0, 1]], atol=1e-12)
    assert torch.allclose(logits[:, 1], start[:, 1], atol=1e-12)


def test_several_rows_touch_the_logit_of_any_of_them_from_below():
    new = Outputs(("background", "kidneys"))
    old_logits, logits, _ = rows(OLD, new, match_heads(OLD, new))
    any_of_them = old_logits[:, 2:4].logsumexp(1)
    assert (logits[:, 1] <= any_of_them + 1e-12).all()
    equal = torch.full((1, 1), 0.7).double().expand(5, 1)
    made = combine_rows(equal[:, 0], torch.zeros(2).double(), match_heads(OLD, new), OLD, new, bias=True)
    assert made[1] == pytest.approx(equal[2:4, 0].logsumexp(0).item())


def test_softmax_to_regions_gives_the_probability_against_background():
    old, new = Outputs(("background", "liver")), Outputs(("liver",), sigmoid=True)
    old_logits, logits, _ = rows(old, new, match_heads(old, new))
    assert torch.allclose(logits[:, 0].sigmoid(), old_logits.softmax(1)[:, 1])


def test_regions_to_softmax_is_exact_for_one_structure():
    old, new = Outputs(("liver",), sigmoid=True), Outputs(("background", "liver"))
    old_logits, logits, _ = rows(old, new, match_heads(old, new))
    assert torch.allclose(logits.softmax(1)[:, 1], old_logits[:, 0].sigmoid())
    assert describe_heads({"liver": ("liver",)}, old, new)["background"].startswith("0, as a sigmoid's background")


def test_wrong_names_are_refused_with_those_there_are():
    new = Outputs(("background", "liver"))
    with pytest.raises(ValueError, match="the target has no output spleen; its outputs are background, liver"):
        describe_heads({"spleen": ("liver",)}, OLD, new)
    with pytest.raises(
        ValueError, match="to start from heart, which the checkpoint does not have; its outputs are back"
    ):
        describe_heads({"liver": ("heart",)}, OLD, new)
    assert describe_heads({}, OLD, new)["liver"] == "initialised, the checkpoint has nothing of that name"
