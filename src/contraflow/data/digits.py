"""The UCI optical digits that ship inside scikit-learn: real images, offline."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from contraflow.data.splits import Part, Source, Splits
from contraflow.errors import DataError


@dataclass(frozen=True)
class Digits(Source):
    """1,797 images of 8 x 8 pixels in 17 grey levels: 1,257 / 180 / 360 rows.

    x is float32 ``[N, 1, 8, 8]`` and holds the integers 0 to 16. The test rows, then the
    validation rows, are taken by scikit-learn's ``train_test_split`` with ``random_state=0``.

    Example:
        >>> splits = Digits().load()
        >>> len(splits.train), len(splits.validation), len(splits.test), splits.num_bins
        (1257, 180, 360, 17)

    Reference:
        Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI repository.
    """

    def load(self) -> Splits:
        """Read the images from the installed scikit-learn.

        Raises:
            DataError: scikit-learn is not installed.
        """
        try:
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        except ImportError as error:
            raise DataError(
                f"Digits: the images ship inside scikit-learn, which cannot be imported ({error}). "
                "Install it: pip install scikit-learn."
            ) from error
        images, _ = load_digits(return_X_y=True)  # [1797, 64], float64
        rest, test = train_test_split(images, test_size=360, random_state=0)
        train, validation = train_test_split(rest, test_size=180, random_state=0)
        parts = (
            Part(torch.tensor(rows, dtype=torch.float32).reshape(-1, 1, 8, 8))
            for rows in (train, validation, test)
        )
        return Splits("digits", *parts, num_bins=17)
