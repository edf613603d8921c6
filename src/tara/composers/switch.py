"""LoRA Switch (Zhong et al., Multi-LoRA Composition, TMLR 2024, arXiv 2402.16843): one LoRA at a time, in turn.

Of k adapters, number ``i mod k`` in the order in which they were given acts at denoising step i, counted from 0. The
authors switch every five of 100 steps or more; with the 20 to 50 steps of today's samplers each step takes the next.
"""

from collections.abc import Sequence

from tara.composers.interface import Composer, one_by_one


def _in_turn(step: int, members: int) -> Sequence[int]:
    return (step % members,)


SWITCH = Composer(meaning="one LoRA per step, in turn", members=one_by_one, turn=_in_turn)
