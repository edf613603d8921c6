from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

import tiny_adapters
from tara.adapters.adapter import Context
from tara.core.tokens import word_spans
from tara.errors import TaraError
from tara.families.base import Base
from tara.families.processors import KeysValues, TextConditioning
from tara.inference.active_adapter import ActiveAdapter
from tara.inference.binding import bind, bind_all_tokens
from tara.inference.fitting import check_fits
from tara.inference.fusing import fused, global_part
from tara.inference.text_kv import CachedTextEncoder, compute_text_kv

PROMPT = "on the beach a xlo dog and a szn cat"


def _compose(base: Base, active_adapters: list[ActiveAdapter], context: Context | None = None) -> TextConditioning:
    """Rows: a negative one, the prompt with its adapters, another prompt without."""
    encoding = base.encode(["", PROMPT, "a red house"])
    return compute_text_kv(
        CachedTextEncoder(base), encoding, [[], bind(encoding.tokenized[1], active_adapters), []], context
    )


def _rex_and_tom(base: Base, **options: Any) -> list[ActiveAdapter]:
    rex = tiny_adapters.random_adapter(base, "xlo", "dog", seed=1)
    tom = tiny_adapters.random_adapter(base, "szn", "cat", seed=2)
    return [ActiveAdapter(rex, **options), ActiveAdapter(tom, **options)]


def _equal(one: TextConditioning, other: TextConditioning) -> bool:
    pairs = [(one.kv[layer][part], other.kv[layer][part]) for layer in one.kv for part in (0, 1)]
    return one.kv.keys() == other.kv.keys() and all(torch.equal(*pair) for pair in pairs)


def _changed(one: KeysValues, other: KeysValues) -> list[list[tuple[int, int]]]:
    return [
        [(int(row), int(token)) for row, token in (x != y).any(-1).nonzero()] for x, y in zip(one, other, strict=True)
    ]


@pytest.mark.parametrize("context", ["prompt", "delta"])
def test_a_fresh_adapter_changes_nothing(any_pipe: Any, context: Context) -> None:
    base = Base(any_pipe)
    fresh = ActiveAdapter(tiny_adapters.random_adapter(base, strength=0.0))
    assert _equal(_compose(base, [fresh], context), _compose(base, []))


@pytest.mark.parametrize("context", ["prompt", "delta"])
def test_only_the_rare_words_rows_change(any_pipe: Any, context: Context) -> None:
    base = Base(any_pipe)
    rex = _rex_and_tom(base)[0]
    without, composed = _compose(base, []), _compose(base, [rex], context)
    (binding,) = bind(base.tokenize(PROMPT), [rex])
    assert [len(word) for word in binding.occurrences] == [2]
    expected = [(1, position) for position in binding.occurrences[0]]
    for layer in base.text_layers:
        assert _changed(without.kv[layer], composed.kv[layer]) == [expected, expected]


@pytest.mark.parametrize("context", ["prompt", "delta"])
def test_two_adapters_commute_to_the_last_bit(any_pipe: Any, context: Context) -> None:
    base = Base(any_pipe)
    rex, tom = _rex_and_tom(base)
    assert _equal(_compose(base, [rex, tom], context), _compose(base, [tom, rex], context))


def test_summed_adapters_commute_to_the_last_bit(sd_pipe: StableDiffusionPipeline) -> None:
    base = Base(sd_pipe)
    rex, tom = _rex_and_tom(base)
    encoding = base.encode([PROMPT])
    one, other = (
        compute_text_kv(CachedTextEncoder(base), encoding, [bind_all_tokens(encoding.tokenized[0], active_adapters)])
        for active_adapters in ([rex, tom], [tom, rex])
    )
    assert _equal(one, other)


def test_keys_and_values_are_the_papers_formula_in_float64(any_pipe: Any) -> None:
    any_pipe.to(torch.float64)
    base = Base(any_pipe)
    rex, tom = _rex_and_tom(base, weight=0.7)
    composed = _compose(base, [rex, tom], "prompt")
    x = base.encode([PROMPT]).embeddings[0].numpy()
    for layer in base.text_layers:
        for part, name in enumerate(("to_k", "to_v")):
            expected = x @ any_pipe.unet.get_submodule(f"{layer}.{name}").weight.numpy().T
            for active, positions in ((rex, (5, 6)), (tom, (10, 11, 12))):
                delta = active.adapter.layers[f"{layer}.{name}"]
                mask = np.isin(np.arange(77), positions)[:, None]
                expected = expected + mask * (0.7 * 4.0 * x @ delta.a.double().numpy().T @ delta.b.double().numpy().T)
            np.testing.assert_allclose(composed.kv[layer][part][1].numpy(), expected, rtol=1e-9, atol=1e-12)


def test_the_context_delta_reads_the_word_in_the_training_phrase(any_pipe: Any) -> None:
    any_pipe.to(torch.float64)
    base = Base(any_pipe)
    rex = _rex_and_tom(base)[0]
    composed = _compose(base, [rex], "delta")
    phrase = base.encode(["a photo of a xlo dog"]).embeddings[0, 5:7]  # after the start token and four words
    here = base.encode([PROMPT]).embeddings[0, 5:7]
    for layer in base.text_layers:
        projection = any_pipe.unet.get_submodule(f"{layer}.to_v")
        delta = rex.adapter.layers[f"{layer}.to_v"].to(dtype=torch.float64).delta(phrase)
        expected = projection(here) + delta
        torch.testing.assert_close(composed.kv[layer][1][1, 5:7], expected)


def test_in_its_own_training_phrase_the_contexts_are_the_same(any_pipe: Any) -> None:
    any_pipe.to(torch.float64)
    base = Base(any_pipe)
    rex = _rex_and_tom(base)[0]
    encoding = base.encode([rex.adapter.card.phrase])
    encoder, bindings = CachedTextEncoder(base), [bind(encoding.tokenized[0], [rex])]
    found = [
        compute_text_kv(encoder, encoding, bindings, "prompt"),
        compute_text_kv(encoder, encoding, bindings, "delta"),
    ]
    for layer in base.text_layers:
        torch.testing.assert_close(found[0].kv[layer], found[1].kv[layer])


def test_a_training_phrase_has_no_syntax_just_as_in_training(sd_pipe: StableDiffusionPipeline) -> None:
    base, phrase = Base(sd_pipe), "a photo of a (xlo dog:1.5)"
    rex = ActiveAdapter(tiny_adapters.random_adapter(base, phrase=phrase))
    composed = _compose(base, [rex], "delta")
    (span,) = word_spans(phrase, "xlo")
    inputs = base.encode([phrase]).embeddings[0, list(base.tokenize(phrase).positions(span))]
    here = base.encode([PROMPT]).embeddings[0, 5:7]
    for layer in base.text_layers:
        expected = base.project(layer, here)[1] + rex.adapter.layers[f"{layer}.to_v"].delta(inputs)
        torch.testing.assert_close(composed.kv[layer][1][1, 5:7], expected)


def test_the_card_chooses_the_context_unless_told_otherwise(sd_pipe: StableDiffusionPipeline) -> None:
    base = Base(sd_pipe)
    rex = ActiveAdapter(tiny_adapters.random_adapter(base, context="delta"))
    assert _equal(_compose(base, [rex]), _compose(base, [rex], "delta"))
    assert not _equal(_compose(base, [rex]), _compose(base, [rex], "prompt"))


@pytest.mark.parametrize("word", ["rex", "szn"])  # one token and three, where the card's word has two
def test_a_rebound_word_takes_the_last_pieces_of_the_cards_word(sd_pipe: StableDiffusionPipeline, word: str) -> None:
    base = Base(sd_pipe)
    adapter = tiny_adapters.random_adapter(base)
    encoding = base.encode([f"a {word} dog"])
    bindings = bind(encoding.tokenized[0], [ActiveAdapter(adapter, rare_word=word)])
    composed = compute_text_kv(CachedTextEncoder(base), encoding, [bindings], "delta")
    phrase = base.encode([adapter.card.phrase]).embeddings[0, 5:7]
    inputs = phrase[[1]] if word == "rex" else phrase[[0, 0, 1]]
    layer = base.text_layers[0]
    frozen = sd_pipe.unet.get_submodule(layer).to_k(encoding.embeddings[0, 2 : 2 + len(inputs)])
    expected = frozen + adapter.layers[f"{layer}.to_k"].delta(inputs)
    torch.testing.assert_close(composed.kv[layer][0][0, 2 : 2 + len(inputs)], expected)


@pytest.mark.parametrize("context", ["prompt", "delta"])
def test_an_adapter_of_weight_zero_is_not_there(sd_pipe: StableDiffusionPipeline, context: Context) -> None:
    base = Base(sd_pipe)
    assert _equal(_compose(base, _rex_and_tom(base, weight=0.0), context), _compose(base, []))


def test_a_phrase_without_its_word_is_refused(sd_pipe: StableDiffusionPipeline) -> None:
    base = Base(sd_pipe)
    lost = ActiveAdapter(tiny_adapters.random_adapter(base, phrase="a photo of a dog"))
    with pytest.raises(TaraError, match="lacks its rare word 'xlo'"):
        _compose(base, [lost], "delta")


def test_adapters_may_share_tokens(sd_pipe: StableDiffusionPipeline) -> None:
    base = Base(sd_pipe)
    both = [ActiveAdapter(tiny_adapters.random_adapter(base, word, "dog")) for word in ("a xlo", "xlo dog")]
    one, other, neither = (_compose(base, some, "prompt") for some in (both[:1], both[1:], []))
    layer = base.text_layers[0]
    summed = one.kv[layer][0] + other.kv[layer][0] - neither.kv[layer][0]
    torch.testing.assert_close(_compose(base, both, "prompt").kv[layer][0], summed)


def test_an_adapter_of_another_base_is_refused(
    sd_pipe: StableDiffusionPipeline, sdxl_pipe: StableDiffusionXLPipeline
) -> None:
    sd, sdxl = Base(sd_pipe), Base(sdxl_pipe)
    adapter = tiny_adapters.random_adapter(sdxl)
    check_fits(sdxl, ActiveAdapter(adapter))
    with pytest.raises(TaraError, match="family 'sdxl-64', but this base is 'sd-32'"):
        check_fits(sd, ActiveAdapter(adapter))
    with pytest.raises(TaraError, match=r"changes a layer '.*to_k' of 64 x"):
        check_fits(sd, ActiveAdapter(tiny_adapters.random_adapter(sdxl, family="sd-32")))


@pytest.mark.parametrize("fails", [False, True])
def test_the_denoisers_weights_are_left_as_they_were_found(any_pipe: Any, fails: bool) -> None:
    base = Base(any_pipe)
    adapter = tiny_adapters.random_adapter(base, targets=tiny_adapters.ATTENTION)
    parts = global_part(
        [ActiveAdapter(adapter, weight=0.5, global_weight=0.5), ActiveAdapter(adapter, global_weight=0.0)]
    )
    before = {name: weight.clone() for name, weight in any_pipe.unet.state_dict().items()}
    try:
        with fused(base, parts):
            path = f"{base.attention_layers[0]}.to_q"
            inside = any_pipe.unet.get_submodule(path).weight
            torch.testing.assert_close(inside, before[f"{path}.weight"] + 0.25 * adapter.layers[path].dense())
            changed = {
                name for name, weight in any_pipe.unet.state_dict().items() if not torch.equal(weight, before[name])
            }
            assert changed == {f"{path}.weight" for path in adapter.global_deltas}
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    after = any_pipe.unet.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
