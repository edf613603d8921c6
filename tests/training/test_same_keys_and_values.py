"""Training and inference give the text the same keys and values: what is learned is what is generated with."""

from pathlib import Path

import pytest
import torch

from tara.families.base import Base
from tara.inference.active_adapter import ActiveAdapter
from tara.inference.binding import bind
from tara.inference.text_kv import CachedTextEncoder, compute_text_kv
from tara.training.text_batch import TextCache, text_batch, text_conditioning
from training_fixtures import quick, run_steps, training_of, two_concepts

PHRASE = "a photo of a xlo dog"
LONGER = "the nice xlo dog beside a xlo toy dog on the beach"


@pytest.mark.parametrize(("caption", "context"), [(PHRASE, None), (PHRASE, "prompt"), (LONGER, "prompt")])
@pytest.mark.parametrize("shape", ["shared_base", "shared_sdxl"])
def test_training_and_inference_give_the_same_keys_and_values_bit_for_bit(
    shape: str, caption: str, context: str | None, tmp_path: Path, request: pytest.FixtureRequest
):
    base: Base = request.getfixturevalue(shape)
    training = training_of(two_concepts(tmp_path)[:1], quick(steps=2, token_mask=True), base)
    run_steps(training)
    (adapter,) = training.adapters()
    assert base.dtype == torch.float32

    texts = TextCache(base)
    row = text_batch([texts.caption(caption, "xlo", "dog")], texts, concepts=1, token_mask=True)
    learned = text_conditioning(base, row, training.weights)

    encoding = base.encode([caption])
    bindings = [bind(encoding.tokenized[0], [ActiveAdapter(adapter)])]
    generated = compute_text_kv(CachedTextEncoder(base), encoding, bindings, context)  # pyright: ignore[reportArgumentType]

    plain = base.project_text(encoding.embeddings)
    assert learned.kv.keys() == generated.kv.keys() == plain.keys()
    for layer, pair in learned.kv.items():
        for ours, theirs, frozen in zip(pair, generated.kv[layer], plain[layer], strict=True):
            assert torch.equal(ours, theirs)
            assert not torch.equal(ours, frozen)
