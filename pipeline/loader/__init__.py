"""Reads finished data sets inside the training job; needs neither Ray nor any model."""

from pipeline.loader.dataset import TokenDataset
from pipeline.loader.mixture import MixedDataset, Source
from pipeline.loader.order import BlockShuffle, EpochOrder
from pipeline.loader.prefix import SampledPrefix
from pipeline.loader.ragged import RaggedBatch
from pipeline.loader.samples import Samples

__all__ = [
    "BlockShuffle",
    "EpochOrder",
    "MixedDataset",
    "RaggedBatch",
    "SampledPrefix",
    "Samples",
    "Source",
    "TokenDataset",
]
