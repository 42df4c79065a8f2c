"""Left-right mirroring with swapped ids, also where sources do not annotate both sides."""

import numpy as np
import pytest
import torch

from nnunet_pretrain.labels import LabelScheme, LabelSetTable, LabelSpace
from nnunet_pretrain.labels.structures import mirrored_name
from nnunet_pretrain.training.mirroring import MirrorLeftRight, mirrored_ids

SPACE = LabelSpace(name="test", structures=("kidney_left", "kidney_right", "liver"))
BOTH = LabelScheme(name="both", sets={0: ("background",), 1: ("kidney_left",), 2: ("kidney_right",), 3: ("liver",)})
UNSPLIT = LabelScheme(name="unsplit", sets={0: ("background", "liver"), 1: ("kidney_left", "kidney_right")})
ONE = LabelScheme(name="one", sets={0: ("background", "kidney_right", "liver"), 1: ("kidney_left",)})
LIVER = LabelScheme(name="liver", sets={0: ("background", "kidney_left", "kidney_right"), 3: ("liver",)})
TABLE = LabelSetTable(SPACE, (BOTH, UNSPLIT, ONE, LIVER), {})


def test_names_of_the_other_side():
    names = ("kidney_left", "left_atrium", "gluteus_maximus_right", "liver", "leftover")
    assert [mirrored_name(n) for n in names] == [
        "kidney_right",
        "right_atrium",
        "gluteus_maximus_left",
        "liver",
        "leftover",
    ]


def test_an_id_turns_into_one_with_the_mirrored_label_set():
    ids, possible = mirrored_ids(TABLE)
    assert possible.tolist() == [True, True, False, True]
    assert ids[0].tolist() == [0, 2, 1, 3, 4]
    assert ids[1, :2].tolist() == [0, 1]
    assert ids[3, [0, 3]].tolist() == [0, 3]


@pytest.mark.parametrize("scheme", range(4))
def test_every_voxel_keeps_its_meaning(scheme):
    torch.manual_seed(0)
    stored = list(TABLE.schemes[scheme].sets)
    target = torch.from_numpy(np.random.default_rng(scheme).choice(stored, (16, 1, 4, 6, 8))).to(torch.int16)
    data = torch.randn(16, 1, 4, 6, 8)
    mirror = MirrorLeftRight(TABLE, axis=2)
    images, (labels, coarse) = mirror(data, [target, target[..., ::2, ::2, ::2]], torch.full((16,), scheme))
    swap = [0, 2, 1, 3]
    flipped = 0
    for before, after, image, image_after in zip(target, labels, data, images, strict=True):
        if torch.equal(image, image_after):
            assert torch.equal(before, after)
            continue
        flipped += 1
        assert torch.equal(image.flip(-1), image_after)
        sets_before = TABLE.member[scheme][before.flip(-1).numpy()][..., swap]
        assert (TABLE.member[scheme][after.numpy()] == sets_before).all()
    assert flipped == 0 if scheme == 2 else 2 <= flipped <= 14
    assert coarse.shape == (16, 1, 2, 3, 4)
    assert labels.dtype == torch.int16
