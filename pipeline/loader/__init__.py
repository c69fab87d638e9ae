"""Reads finished data sets inside the training job; needs neither Ray nor any model."""

from pipeline.loader.dataset import TokenDataset
from pipeline.loader.order import EpochOrder
from pipeline.loader.ragged import RaggedBatch

__all__ = ["EpochOrder", "RaggedBatch", "TokenDataset"]
