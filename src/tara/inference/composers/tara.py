"""Token-aware composition (TARA, arXiv 2508.08812): each adapter acts on its own rare word."""

from tara.inference.composers.interface import Composer

TARA = Composer(meaning="each adapter on its own word", everywhere=False)
