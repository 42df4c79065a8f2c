"""Gradients of the label-set loss in one of several processes; a module of its own, so that spawned ones import it."""

import os

import numpy as np
import torch
from torch import distributed as dist
from torch import nn

from nnunet_pretrain.labels import LabelScheme, LabelSetTable, LabelSpace
from nnunet_pretrain.training.distributed import device_of_process, rank_seed, wrap_for_device
from nnunet_pretrain.training.label_set_loss import LabelSetLoss
from nnunet_pretrain.training.label_sets import LabelSets

SPACE = LabelSpace(name="four", structures=("liver", "liver_tumor", "kidney_left", "kidney_right"))
COMPLETE = LabelScheme(
    name="complete", sets={**{i: (name,) for i, name in enumerate(SPACE.names)}, SPACE.ignore_id: SPACE.names}
)
LIVER = LabelScheme(
    name="liver",
    sets={0: ("background", "kidney_left", "kidney_right"), 1: ("liver", "liver_tumor"), SPACE.ignore_id: SPACE.names},
)
KIDNEYS = LabelScheme(name="kidneys", sets={0: ("background", "liver", "liver_tumor"), 3: SPACE.names[3:]})
NOTHING = LabelScheme(name="nothing", sets={0: SPACE.names})
TABLE = LabelSetTable(SPACE, (COMPLETE, LIVER, KIDNEYS, NOTHING), {})
SHAPE = (6, 5, 4)


def share_of_batch(schemes):
    """Images and stored ids; two thirds of the first sample are `ignore`, so that voxels that count are unequal."""
    generator = np.random.default_rng(3)
    images = torch.from_numpy(generator.normal(size=(len(schemes), 1, *SHAPE)))
    ids = [generator.choice(list(TABLE.schemes[scheme].sets), size=(1, *SHAPE)) for scheme in schemes]
    if SPACE.ignore_id in TABLE.schemes[schemes[0]].sets:
        ids[0][:, :4] = SPACE.ignore_id
    return images, torch.from_numpy(np.stack(ids))


def gradients(schemes, samples, batch_dice, distributed):
    """Loss of some of the batch's samples, and the gradients that this process would apply."""
    torch.manual_seed(5)
    heads = len(SPACE.names)
    network = nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), nn.LeakyReLU(), nn.Conv3d(6, heads, 1)).double()
    if distributed:
        network = wrap_for_device(network, torch.device("cpu"))
    images, ids = share_of_batch(schemes)
    sets = LabelSets(TABLE)
    rows = sets.encode(ids, torch.tensor(schemes))
    loss = LabelSetLoss(sets, batch_dice=batch_dice, ddp=distributed)(network(images[samples]), rows[samples])
    loss.backward()
    return loss.item(), [parameter.grad.clone() for parameter in network.parameters()]


def gradients_of_process(rank, shares, examples, port, folder):
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=len(shares))
    found = [gradients(schemes, shares[rank], batch_dice, True) for schemes, batch_dice in examples]
    os.environ.pop("LOCAL_RANK", None)  # as in `nnUNetv2_train -num_gpus`
    gpu = device_of_process(torch.device("cuda")).index
    torch.save({"found": found, "seed": rank_seed(7), "gpu": gpu}, folder / f"{rank}.pt")
    dist.destroy_process_group()
