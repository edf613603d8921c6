"""DARE merging (Yu et al., ICML 2024, arXiv 2311.03099): drop entries by chance, rescale the rest, add.

Half of each layer's delta matrix is dropped and the rest doubled, which keeps its expectation, before the adapters are
added up. :mod:`tara.inference.composers.merging` says why matrices are merged, not factors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tara.inference.composers.interface import Composer
from tara.inference.composers.merging import merged_by

if TYPE_CHECKING:
    from torch import Tensor

DENSITY = 0.5  # language models bear to lose nine tenths; the paper has no figure for pictures


def _dare(deltas: list[Tensor], weights: Tensor) -> Tensor:
    from peft.utils.merge_utils import dare_linear  # here, because peft takes seconds to import

    return dare_linear(deltas, weights, DENSITY)


DARE = Composer(meaning="DARE merge of the delta matrices", members=merged_by(_dare))
