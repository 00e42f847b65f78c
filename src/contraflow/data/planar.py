"""The 2-D sets as a data source."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from contraflow.data.splits import Part, Source, Splits
from contraflow.distributions.planar import planar_set
from contraflow.errors import ConfigurationError


@dataclass(frozen=True)
class Planar(Source):
    """Independent draws from one of the 2-D sets, float32.

    The test part is drawn first and the training part last, from one generator, so asking for
    more training rows leaves the other two parts as they were.

    Args:
        name: one of ``contraflow.distributions.planar.PLANAR_SETS``.
        num_train: training rows.
        num_validation: validation rows.
        num_test: test rows.
        seed: seed of the generator.

    Raises:
        ConfigurationError: the set is unknown, or a part would be empty.

    Example:
        >>> splits = Planar("moons", num_train=100, num_validation=20, num_test=30).load()
        >>> splits.train, len(splits.test), splits.columns
        (Part(x=float32 [100, 2], context=None), 30, ('x', 'y'))
    """

    name: str = "checkerboard"
    num_train: int = 200_000
    num_validation: int = 10_000
    num_test: int = 100_000
    seed: int = 0

    def __post_init__(self) -> None:
        planar_set(self.name)
        for label in ("num_train", "num_validation", "num_test"):
            if getattr(self, label) < 1:
                raise ConfigurationError(
                    f"Planar: got {label}={getattr(self, label)}, expected at least 1."
                )

    def load(self) -> Splits:
        """Draw the three parts."""
        source = planar_set(self.name)
        generator = torch.Generator().manual_seed(self.seed)
        test, validation, train = (
            Part(source.sample(n, generator, dtype=torch.float32))
            for n in (self.num_test, self.num_validation, self.num_train)
        )
        return Splits(self.name, train, validation, test, columns=("x", "y"))
