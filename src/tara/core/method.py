"""The method in one file: token focus masking and the token alignment loss (TARA, arXiv 2508.08812).

``python -m tara.core.method`` runs it on random numbers.

    prompt        a      xlo     dog   and   a      szn     cat
    text rows X   x0     x1      x2    x3    x4     x5      x6
                  |      |       |     |     |      |       |
    frozen        W_K    W_K     W_K   W_K   W_K    W_K     W_K        K = X W_K^T, once per prompt
    adapter xlo          + sBA                                         acts on its rare word's tokens only
    adapter szn                                     + sBA              (token focus masking), so adapters trained
                  |      |       |     |     |      |       |          independently do not interfere
    keys          k0     k1'     k2    k3    k4     k5'     k6         values V in the same way
                          \\_____/
                  alignment loss: the distance between k1' (with its delta) and the frozen k2 of its class word

Keys and values depend on the text alone, so composing N adapters costs nothing per denoising step: the network
attends to K and V that were computed before the first one (`tara.inference.text_kv`). Training computes the same
K and V at every step, with gradients (`tara.training.text_batch`). Both call `add_masked_delta`.
"""

import re
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tara.core.lora import LowRank, new_low_rank
from tara.core.tokens import find_word, word_spans

AlignmentSubwords = Literal["mean", "each"]


def add_masked_delta(
    frozen: Float[Tensor, "rows tokens d_out"],
    low_rank: LowRank,
    inputs: Float[Tensor, "*concepts n d_in"],
    positions: Int[Tensor, " all"] | None,
    weight: float = 1.0,
) -> Float[Tensor, "rows tokens d_out"]:
    """Token focus masking: ``K + M (w s X A^T B^T)``, where the mask M is 1 at some tokens and 0 elsewhere.

    Args:
        frozen: keys or values of the base.
        low_rank: the adapter's delta of this projection, with a leading axis for several concepts.
        inputs: the text embeddings X that the delta reads, for each concept.
        positions: where M is 1: the flat index (row * tokens + token) of each input. None: M is 1 everywhere, and
            inputs are in the order of the tokens.
        weight: the adapter's weight w.
    """
    delta = (weight * low_rank.delta(inputs)).flatten(0, -2).to(frozen.dtype)
    if positions is None:
        return frozen + delta.view_as(frozen)
    return frozen.flatten(0, 1).index_add(0, positions, delta).view_as(frozen)


def token_alignment_loss(
    rare_keys: Sequence[Float[Tensor, "_rare_tokens _d"]],
    class_keys: Sequence[Float[Tensor, "_class_tokens _d"]],
    form: Literal["l1", "squared"] = "l1",
    subwords: AlignmentSubwords = "mean",
) -> Float[Tensor, ""]:
    """Distance between a rare word's keys with their delta and its class word's frozen keys.

    Args:
        rare_keys: for each layer the keys of the rare word's tokens; widths may differ between layers.
        class_keys: for each layer the keys of the class word's tokens in the same prompt.
        form: mean absolute difference (published code) or mean squared difference (one reading of the paper).
        subwords: what is compared with the class word's mean key: the mean key of the rare word, or each of its keys
            (published code). Both are the same for a rare word of one token.

    Returns:
        A scalar: the distance, averaged over the keys that are compared and over the layers.
    """
    assert len(rare_keys) == len(class_keys) > 0, "one pair of keys per layer"
    distances: list[Tensor] = []
    for rare, of_class in zip(rare_keys, class_keys, strict=True):
        difference = (rare.mean(0) if subwords == "mean" else rare) - of_class.mean(0)
        distances.append(difference.abs().mean() if form == "l1" else difference.square().mean())
    return torch.stack(distances).mean()


def _run() -> None:
    """Align two adapters with their class words, then compose them: neither changes the other's keys."""
    torch.manual_seed(0)
    prompt, width, inner = "a xlo dog and a szn cat", 16, 8
    offsets = [match.span() for match in re.finditer(r"\w+", prompt)]  # one token a word

    def tokens(word: str) -> Tensor:
        return torch.tensor([token for span in word_spans(prompt, word) for token in find_word(offsets, span)])

    text, w_k = torch.randn(1, len(offsets), width), torch.randn(inner, width)
    frozen = text @ w_k.T
    adapters = {word: new_low_rank(width, inner, rank=2) for word in ("xlo", "szn")}
    for word, class_word in (("xlo", "dog"), ("szn", "cat")):
        low_rank = adapters[word]
        optimizer = torch.optim.Adam([low_rank.a.requires_grad_(), low_rank.b.requires_grad_()], lr=0.1)
        for _ in range(100):
            keys = add_masked_delta(frozen, low_rank, text[0, tokens(word)], tokens(word))
            optimizer.zero_grad()
            token_alignment_loss([keys[0, tokens(word)]], [frozen[0, tokens(class_word)]]).backward()
            optimizer.step()
    composed = frozen
    for word, low_rank in adapters.items():
        composed = add_masked_delta(composed, low_rank, text[0, tokens(word)], tokens(word))
    changed = (composed - frozen).abs().sum(-1)[0].nonzero().flatten().tolist()
    print(f"composed: only these words' keys differ from the base's: {[prompt.split()[token] for token in changed]}")


if __name__ == "__main__":
    _run()
