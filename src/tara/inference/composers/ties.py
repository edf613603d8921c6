"""TIES merging (Yadav et al., NeurIPS 2023, arXiv 2306.01708): trim, elect signs, average what agrees.

Of each layer's delta matrix the largest fifth of the entries stays, as in the paper; an entry of the merged matrix is
the mean of those that have its elected sign. :mod:`tara.inference.composers.merging` says why matrices are merged, not factors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tara.inference.composers.interface import Composer
from tara.inference.composers.merging import merged_by

if TYPE_CHECKING:
    from torch import Tensor

DENSITY = 0.2


def _ties(deltas: list[Tensor], weights: Tensor) -> Tensor:
    from peft.utils.merge_utils import ties  # here, because peft takes seconds to import

    return ties(deltas, weights, DENSITY)


TIES = Composer(meaning="TIES merge of the delta matrices", members=merged_by(_ties))
