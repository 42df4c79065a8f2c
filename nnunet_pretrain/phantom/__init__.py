"""A procedural abdominal CT phantom with complete labels; see :mod:`nnunet_pretrain.phantom.generator`."""

from nnunet_pretrain.phantom.anatomy import LESIONS, ORGANS, PHASES, STRUCTURES
from nnunet_pretrain.phantom.generator import FIELDS_OF_VIEW, Appearance, PhantomCase, generate_phantom

__all__ = [
    "FIELDS_OF_VIEW",
    "LESIONS",
    "ORGANS",
    "PHASES",
    "STRUCTURES",
    "Appearance",
    "PhantomCase",
    "generate_phantom",
]
