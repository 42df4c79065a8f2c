"""From the datasets as they are published to one nnU-Net raw dataset."""

from nnunet_pretrain.conversion.merge import merge
from nnunet_pretrain.conversion.source import Source, find_source, known_sources

__all__ = ["Source", "find_source", "known_sources", "merge"]
