"""Plain addition of LoRAs: ``W + sum_c w_c s_c B_c A_c`` in every layer, for every token of every row.

Adapters on text keys and values act in the same way: their deltas are added at all tokens.
"""

from tara.inference.composers.composer import Composer

SUM = Composer(description="plain addition of all LoRAs")
