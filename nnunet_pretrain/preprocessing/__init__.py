"""Preprocessing that writes the files of stock `nnUNetv2_preprocess`, faster and resumable.

Nothing of it is named in plans: stock commands and stock training work on the same plans and the same data.
"""

from nnunet_pretrain.preprocessing.preprocess import preprocess

__all__ = ["preprocess"]
