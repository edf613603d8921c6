"""Plain addition of LoRAs: ``W + sum_c w_c s_c B_c A_c`` in every layer, for every token of every row.

This also is what becomes of adapters on text keys and values: their deltas are added to all tokens.
"""

from tara.inference.composers.interface import Composer

SUM = Composer(meaning="plain addition of all LoRAs")
