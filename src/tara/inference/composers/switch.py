"""LoRA Switch (Zhong et al., Multi-LoRA Composition, TMLR 2024, arXiv 2402.16843): one LoRA at a time, in turn.

Of k adapters, number ``floor(i / every) mod k`` in the order in which they were given acts at denoising step i, counted
from 0. The authors switch every 5 of their 100 or 200 steps. With the 20 to 50 steps of today's samplers, 5 would leave
a LoRA few turns or none; one in twenty steps, as theirs at 100, comes to every step or every other one.
"""

from collections.abc import Sequence
from dataclasses import replace

from tara.inference.composers.interface import Composer, one_by_one


def switch_every(steps: int) -> Composer:
    """LoRA Switch that goes on to the next LoRA after so many steps."""

    def in_turn(step: int, members: int) -> Sequence[int]:
        return (step // steps % members,)

    return Composer(meaning=f"one LoRA at a time, the next after {steps} steps", members=one_by_one, turn=in_turn)


SWITCH = replace(switch_every(1), meaning="one LoRA per step, in turn")
