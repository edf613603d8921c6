"""LoRA Composite (Zhong et al., Multi-LoRA Composition, TMLR 2024, arXiv 2402.16843): the mean of all LoRAs' scores.

``e = 1/k sum_i [e_i(z, no text) + g (e_i(z, text) - e_i(z, no text))]`` at every step, for k LoRAs and the guidance
scale g. Guidance is linear in the predictions, so the pipeline guides their mean and comes to the same.
"""

from tara.inference.composers.interface import Composer, Uses, one_by_one


def _members(uses: Uses) -> tuple[Uses, ...]:
    # a fixed order of summation: the order in which adapters are given changes nothing, to the last bit
    return one_by_one(tuple(sorted(uses, key=lambda use: use.order)))


COMPOSITE = Composer(meaning="mean of each LoRA's own score, at every step", members=_members)
