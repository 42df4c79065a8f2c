"""Label space, label schemes and the arrays made of them."""

from nnunet_pretrain.labels.scheme import LabelScheme
from nnunet_pretrain.labels.space import BACKGROUND, DEFAULT_SPACE, IGNORE, LabelSpace
from nnunet_pretrain.labels.table import DUPLICATES_KEY, SCHEMES_KEY, SPACE_KEY, LabelSetTable

__all__ = [
    "BACKGROUND",
    "DEFAULT_SPACE",
    "DUPLICATES_KEY",
    "IGNORE",
    "SCHEMES_KEY",
    "SPACE_KEY",
    "LabelScheme",
    "LabelSetTable",
    "LabelSpace",
]
