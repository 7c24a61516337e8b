"""Handwritten digits that scikit-learn ships (E. Alpaydin, C. Kaynak, UCI 1998): 1,797 grey images of 8 × 8 pixels."""

from dataclasses import replace

import numpy as np

from hwnas.data.dataset import Dataset
from hwnas.data.optional import require
from hwnas.data.request import Request
from hwnas.data.sources import array_source, assemble

_DEFAULT_SIZE = 32
_LEVELS = 16  # pixels are 0..16


def load_digits(request: Request) -> Dataset:
    """Loads the digits, scaled up to 32 × 32 unless asked otherwise, and splits them three ways.

    Raises:
        UnavailableError: scikit-learn is missing.
    """
    require("The digits dataset", sklearn="scikit-learn")
    from sklearn import datasets

    bunch = datasets.load_digits()
    images = np.rint(bunch.images * (255 / _LEVELS)).astype(np.uint8)[:, None]
    request = replace(request, image_size=request.image_size or _DEFAULT_SIZE)
    classes = tuple(str(name) for name in bunch.target_names)
    return assemble("digits", classes, request, array_source(images, bunch.target, request))
