"""Low-rank deltas of linear layers and convolutions."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

InitialWeights = Literal["uniform", "gaussian"]


@dataclass(frozen=True, eq=False)
class LowRank:
    """The delta of one layer's weight, ``scale * B A`` (Hu et al., LoRA, arXiv 2106.09685); ``scale`` is alpha / rank.

    An optional leading axis holds the deltas of several concepts, or of the rows of a batch. ``kernel`` is the (height,
    width) of a convolution's kernel, None for a linear layer. A convolution's ``d_in`` is channels x height x width.
    """

    a: Float[Tensor, "*concepts rank d_in"]
    b: Float[Tensor, "*concepts d_out rank"]
    scale: float
    kernel: tuple[int, int] | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[-2]

    @property
    def d_in(self) -> int:
        return self.a.shape[-1]

    @property
    def d_out(self) -> int:
        return self.b.shape[-2]

    def delta(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        """What is added to the layer's output for the input ``x``: ``scale * x A^T B^T``, concept by concept."""
        return self.scale * (x @ self.a.mT @ self.b.mT)

    def dense(self) -> Float[Tensor, "d_out d_in"]:
        """What is added to the layer's weight: ``scale * B A``, with a convolution's kernel flattened."""
        return self.scale * (self.b @ self.a)

    def norm(self) -> float:
        """Frobenius norm of ``scale * B A``, without that matrix: ``scale * sqrt(tr((B^T B)(A A^T)))``."""
        a, b = self.a.double(), self.b.double()
        return abs(self.scale) * math.sqrt(max(0.0, float(((b.T @ b) * (a @ a.T)).sum())))

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> "LowRank":
        """The same delta on another device or in another precision."""
        return replace(self, a=self.a.to(device=device, dtype=dtype), b=self.b.to(device=device, dtype=dtype))

    def unit_scale(self) -> "LowRank":
        """The same delta with its scale multiplied into B.

        B becomes float32 where its own precision cannot hold the product exactly.
        """
        if self.scale == 1:
            return self
        exact = self.scale * self.b.double()
        b = exact.to(self.b.dtype)
        return replace(self, a=self.a, b=b if torch.equal(b.double(), exact) else exact.float(), scale=1.0)

    def take(self, concepts: Int[Tensor, " taken"]) -> "LowRank":
        """The deltas of the given concepts or rows, in that order. Indices may repeat."""
        return replace(self, a=self.a[concepts], b=self.b[concepts])


def low_rank_from_matrix(delta: Float[Tensor, "d_out d_in"], kernel: tuple[int, int] | None = None) -> LowRank:
    """Factor a matrix into itself and an identity matrix, so that ``dense`` returns it exactly."""
    d_out, d_in = delta.shape
    identity = torch.eye(min(d_out, d_in), dtype=delta.dtype, device=delta.device)
    return LowRank(delta, identity, 1.0, kernel) if d_out <= d_in else LowRank(identity, delta, 1.0, kernel)


def truncate_rank(delta: LowRank, rank: int) -> tuple[LowRank, float]:
    """The nearest delta of a lower rank (truncated SVD), and the relative Frobenius error.

    Uses subspace iteration (Halko et al., arXiv 0909.4061) from fixed random vectors, so the result is deterministic.
    """
    if delta.rank <= rank:
        return delta, 0.0
    a, b = delta.a.float(), delta.scale * delta.b.float()
    start = torch.randn(delta.d_in, min(rank + 8, *b.shape, *a.shape), generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(start).Q
    for _ in range(8):
        basis = torch.linalg.qr(a.mT @ (b.mT @ (b @ (a @ basis)))).Q
    u, sizes, v = torch.linalg.svd(b @ (a @ basis), full_matrices=False)
    cut = LowRank(v[:rank] @ basis.mT, u[:, :rank] * sizes[:rank], 1.0, delta.kernel)
    missing = torch.linalg.matrix_norm(b @ a - cut.b @ cut.a)
    return cut, float(missing / torch.linalg.matrix_norm(b @ a).clamp(min=1e-30))


def new_low_rank(
    d_in: int,
    d_out: int,
    *,
    rank: int,
    scale: float = 1.0,
    init: InitialWeights = "uniform",
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> LowRank:
    """A delta of zero: ``A`` random, ``B`` zero.

    ``A`` is uniform in +-1/sqrt(d_in) (PEFT's default), or gaussian with standard deviation 1/rank (PEFT's "gaussian",
    and the published code). Random numbers are made on the CPU in float32 and then cast, so they depend on neither
    device nor precision.
    """
    if init == "uniform":
        a = (torch.rand(rank, d_in, generator=generator) * 2 - 1) * (1 / math.sqrt(d_in))
    else:
        a = torch.randn(rank, d_in, generator=generator) / rank
    return LowRank(a.to(dtype), torch.zeros(d_out, rank, dtype=dtype), scale)
