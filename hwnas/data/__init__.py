"""Datasets as three disjoint sets of 8-bit images: train, validation (which guides the search) and test.

Needs numpy only; sources that decode, draw or scale images say so when Pillow, matplotlib or scikit-learn is missing.
Augmentation needs torch and stands apart, in `hwnas.data.augment`.
"""

from hwnas.data.batches import batch_indices
from hwnas.data.dataset import Dataset, Split
from hwnas.data.load import load_dataset

__all__ = ["Dataset", "Split", "batch_indices", "load_dataset"]
