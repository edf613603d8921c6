"""Regions: each adapter acts where its concept is in the image, in one network evaluation a step.

While the base lays out the scene no adapter acts, and the attention maps of the concepts' class words say where each
one will be. From then on ``W x`` becomes ``W x + sum_c m_c (w_c s_c B_c A_c x)`` with disjoint regions m_c, and in
cross-attention a cell reads the prompt as its own region's adapter makes it: `tara.inference.confining`.
FreeFuse (arXiv 2510.23515) and LoRAShop (arXiv 2505.23758) find regions in the same way, in passes of their own.
"""

from tara.inference.composers.composer import Composer

REGIONS = Composer(description="each adapter in its own region of the image", regional=True)
