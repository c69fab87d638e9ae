"""Reads finished data sets inside the training job; needs neither Ray nor any model."""

from pipeline.loader.dataset import TokenDataset
from pipeline.loader.mixture import MixedDataset, Source
from pipeline.loader.order import BlockShuffle, EpochOrder
from pipeline.loader.packed import Packed
from pipeline.loader.prefix import SampledPrefix
from pipeline.loader.ragged import RaggedBatch
from pipeline.loader.samples import Samples
from pipeline.loader.unreduce import size_bias, unreduce
from pipeline.loader.varlen import varlen
from pipeline.loader.windows import Windows

__all__ = [
    "BlockShuffle",
    "EpochOrder",
    "MixedDataset",
    "Packed",
    "RaggedBatch",
    "SampledPrefix",
    "Samples",
    "Source",
    "TokenDataset",
    "Windows",
    "size_bias",
    "unreduce",
    "varlen",
]
