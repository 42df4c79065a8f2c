"""From the datasets as they are published to one nnU-Net raw dataset."""

from nnunet_pretrain.conversion.catalogue import find_source, known_sources
from nnunet_pretrain.conversion.merge import MergeOptions, merge
from nnunet_pretrain.conversion.source import Source

__all__ = ["MergeOptions", "Source", "find_source", "known_sources", "merge"]
