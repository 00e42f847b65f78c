"""An invertible linear map with a triangular factorisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from contraflow.errors import SupportError
from contraflow.registry import register
from contraflow.transform import BlockCertificate, Transform


@register
class LULinear(Transform):
    """``z = P L U x``: permutation, unit lower triangle, upper triangle; the identity at first.

    Args:
        features: D.
        whiten: let ``initialise_from`` start at the map that decorrelates the batch
            (principal axes, then rotated back: the least change of x that does it).

    Example:
        >>> z, ladj = LULinear(3)(torch.ones(1, 3))
        >>> z.tolist(), ladj.tolist()
        ([[1.0, 1.0, 1.0]], [0.0])

    Reference:
        Kingma & Dhariwal 2018, arXiv:1807.03039, section 3.2; Oliva et al. 2018,
        arXiv:1801.09819, section 3.2.
    """

    sign: Tensor
    permutation: Tensor
    initialised: Tensor

    def __init__(self, features: int, whiten: bool = False) -> None:
        super().__init__()
        self.features = features
        self.whiten = whiten
        self.lower = nn.Parameter(torch.zeros(features, features))  # strict triangle is used
        self.upper = nn.Parameter(torch.zeros(features, features))  # strict triangle is used
        self.log_diagonal = nn.Parameter(torch.zeros(features))
        self.register_buffer("sign", torch.ones(features))
        self.register_buffer("permutation", torch.arange(features))
        self.register_buffer("initialised", torch.tensor(False))

    def _factors(self) -> tuple[Tensor, Tensor]:
        lower = self.lower.tril(-1) + torch.eye(
            self.features, dtype=self.lower.dtype, device=self.lower.device
        )
        diagonal = self.sign * self.log_diagonal.exp()
        return lower, self.upper.triu(1) + torch.diag(diagonal)

    def matrix(self) -> Tensor:
        """Return ``W = P L U``, ``[D, D]``."""
        lower, upper = self._factors()
        return (lower @ upper)[self.permutation]

    def _ladj(self, x: Tensor) -> Tensor:
        return self.log_diagonal.sum().expand(x.shape[:-1])

    def latent_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return ``(D,)``, checked."""
        return self._check_vector(shape, self.features)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``W x``."""
        return x @ self.matrix().mT, self._ladj(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``W^-1 z`` by two triangular solves."""
        lower, upper = self._factors()
        columns = z[..., self.permutation.argsort()].reshape(-1, self.features).mT
        columns = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
        columns = torch.linalg.solve_triangular(upper, columns, upper=True)
        return columns.mT.reshape(z.shape), -self._ladj(z)

    @torch.no_grad()
    def initialise_from(self, x: Tensor, context: Tensor | None = None) -> None:
        """Start at the symmetric whitening of this batch, if ``whiten``."""
        if not self.whiten or bool(self.initialised):
            return
        rows = x.reshape(-1, self.features).double()
        centred = rows - rows.mean(0)
        covariance = centred.mT @ centred / max(len(rows), 1)
        values, vectors = torch.linalg.eigh(covariance)
        # Directions the batch cannot resolve keep a tenth of a percent of the mean variance.
        values = values.clamp_min(max(1e-3 * values.mean().item(), 1e-12))
        self.set_matrix((vectors * values.rsqrt()) @ vectors.mT)
        self.initialised.fill_(True)

    @torch.no_grad()
    def set_matrix(self, matrix: Tensor) -> None:
        """Set W to an invertible ``[D, D]``."""
        permutation, lower, upper = torch.linalg.lu(matrix.double())
        diagonal = upper.diagonal()
        self.permutation.copy_(permutation.argmax(1))  # row i of P L is row permutation[i] of L
        self.lower.copy_(lower)
        self.upper.copy_(upper)
        self.sign.copy_(torch.where(diagonal < 0, -1.0, 1.0))
        self.log_diagonal.copy_(diagonal.abs().log())

    def check_state(self) -> None:
        """Refuse a permutation or signs that are none."""
        places = torch.arange(self.features, device=self.permutation.device)
        if not torch.equal(self.permutation.sort().values, places) or bool(
            (self.sign.abs() != 1).any()
        ):
            raise SupportError(
                "LULinear: expected a permutation of the features and signs of 1 or -1."
            )

    @torch.no_grad()
    def certificates(self, name: str) -> list[BlockCertificate]:
        """Return the extreme singular values of W, float64."""
        lower, upper = (factor.double() for factor in self._factors())
        values = torch.linalg.svdvals(lower @ upper)
        return [
            BlockCertificate(
                name,
                forward=values[0].item(),
                inverse=1 / values[-1].clamp_min(1e-300).item(),
            )
        ]
