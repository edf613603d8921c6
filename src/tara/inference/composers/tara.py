"""Token-aware composition (TARA, arXiv 2508.08812): each adapter acts on its own rare word."""

from tara.inference.composers.composer import Composer

TARA = Composer(description="each adapter on its own rare word", masked=True)
