"""Deltas of text encoders: an adapter reads its own word where its own encoder puts it, and nothing else changes."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import foreign_files as files
import tara
import tiny_adapters
import tiny_bases
from tara.adapters.adapter import Adapter, load_adapter
from tara.families.base import Base
from tara.families.processors import CONDITIONING_KEY, TextConditioning
from tara.inference.active_adapter import ActiveAdapter
from tara.inference.binding import bind
from tara.inference.text_kv import CachedTextEncoder, compute_text_kv

PROMPT = "a xlo dog and a szn cat"
XLO, SZN = (2, 3), (7, 8, 9)


def _text_adapter(pipe: Any, folder: Path, with_unet: bool = True) -> Adapter:
    """A kohya file that changes every text encoder, and the U-Net where asked to."""
    if hasattr(pipe, "text_encoder_2"):
        tensors = files.kohya_text(pipe, "text_encoder", "lora_te1_")
        tensors |= files.kohya_text(pipe, "text_encoder_2", "lora_te2_")
    else:
        tensors = files.kohya_text(pipe)
    if with_unet:
        deltas = files.random_deltas(pipe.unet, r"attn2\.to_[kv]$")
        tensors |= files.kohya(deltas, files.TINY_SGM if hasattr(pipe, "text_encoder_2") else None)
    return load_adapter(files.saved(folder / "te.safetensors", tensors))


def _changed(pipe: Any, adapter: Adapter, weight: float = 1.0) -> Any:
    """A copy of the pipeline whose text encoders have the deltas in their weights, by the plain formula."""
    pipe = copy.deepcopy(pipe)
    with torch.no_grad():
        for path, delta in adapter.text_layers.items():
            model, _, inner = path.partition(".")
            modules = dict(getattr(pipe, model).named_modules())
            module = modules.get(inner) or modules[inner.removeprefix("text_model.")]
            module.weight += (weight * delta.scale * (delta.b.double() @ delta.a.double())).float()
    return pipe


def _kv(pipe: Any, active_adapters: list[ActiveAdapter]) -> TextConditioning:
    base = Base(pipe)
    encoding = base.encode([PROMPT])
    return compute_text_kv(CachedTextEncoder(base), encoding, [bind(encoding.tokenized[0], active_adapters)])


@pytest.mark.parametrize("with_unet", [True, False])
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_a_words_rows_are_those_of_its_adapters_own_encoder(
    with_unet: bool, weight: float, any_pipe: Any, tmp_path: Path
) -> None:
    adapter = _text_adapter(any_pipe, tmp_path, with_unet)
    ours = _kv(any_pipe, [ActiveAdapter(adapter, rare_word="xlo", weight=weight)])
    theirs = Base(_changed(any_pipe, adapter, weight)).encode([PROMPT]).embeddings[0, list(XLO)]
    for layer in ours.kv:
        for part, name in enumerate(("to_k", "to_v")):
            expected = any_pipe.unet.get_submodule(f"{layer}.{name}")(theirs)
            if with_unet:
                expected = expected + weight * adapter.layers[f"{layer}.{name}"].delta(theirs)
            torch.testing.assert_close(ours.kv[layer][part][0, list(XLO)], expected, rtol=1e-4, atol=1e-5)


def test_nobody_elses_rows_change(any_pipe: Any, tmp_path: Path) -> None:
    theirs = ActiveAdapter(_text_adapter(any_pipe, tmp_path), rare_word="xlo")
    tom = ActiveAdapter(tiny_adapters.random_adapter(Base(any_pipe), "szn", "cat"))
    both, alone = _kv(any_pipe, [theirs, tom]), _kv(any_pipe, [tom])
    for layer in both.kv:
        for part in (0, 1):
            one, other = both.kv[layer][part][0], alone.kv[layer][part][0]
            assert {int(row) for row in (one != other).any(-1).nonzero()} == set(XLO)


def test_the_text_encoders_are_left_as_they_were_found(any_pipe: Any, tmp_path: Path) -> None:
    adapter = _text_adapter(any_pipe, tmp_path)
    before = Base(any_pipe).encode([PROMPT])
    tara.prepare(any_pipe, PROMPT, [ActiveAdapter(adapter, rare_word="xlo")])
    after = Base(any_pipe).encode([PROMPT])
    assert torch.equal(before.embeddings, after.embeddings)


def test_a_prompts_rows_are_the_same_in_any_batch(any_pipe: Any, tmp_path: Path) -> None:
    adapter = _text_adapter(any_pipe, tmp_path)
    active, other = ActiveAdapter(adapter, rare_word="xlo", weight=0.7), "on the beach xlo and xlo"
    before = Base(any_pipe).encode([PROMPT]).embeddings
    options: dict[str, Any] = {"guidance_scale": 1.0}
    batch = tara.prepare(any_pipe, [PROMPT, other], [active], num_images_per_prompt=2, **options)
    alone = [tara.prepare(any_pipe, prompt, [active], **options) for prompt in (PROMPT, PROMPT, other, other)]
    assert torch.equal(Base(any_pipe).encode([PROMPT]).embeddings, before)
    for layer, parts in batch["cross_attention_kwargs"][CONDITIONING_KEY].kv.items():
        for part in (0, 1):
            rows = [one["cross_attention_kwargs"][CONDITIONING_KEY].kv[layer][part] for one in alone]
            torch.testing.assert_close(parts[part], torch.cat(rows), rtol=1e-4, atol=1e-5)


def test_summed_plain_loras_encode_all_of_the_text(any_pipe: Any, tmp_path: Path) -> None:
    adapter = _text_adapter(any_pipe, tmp_path)
    ours = tara.prepare(any_pipe, PROMPT, [adapter], negative_prompt="a car", composer="sum")
    changed = Base(_changed(any_pipe, adapter))
    positive, negative = changed.encode([PROMPT]), changed.encode_negative("a car")
    torch.testing.assert_close(ours["prompt_embeds"], positive.embeddings, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours["negative_prompt_embeds"], negative.embeddings, rtol=1e-4, atol=1e-5)
    if positive.pooled is not None:
        torch.testing.assert_close(ours["pooled_prompt_embeds"], positive.pooled, rtol=1e-4, atol=1e-5)
    layer, (keys, _) = next(iter(ours["cross_attention_kwargs"][CONDITIONING_KEY].kv.items()))
    text = torch.cat([negative.embeddings, positive.embeddings])
    expected = any_pipe.unet.get_submodule(f"{layer}.to_k")(text) + adapter.layers[f"{layer}.to_k"].delta(text)
    torch.testing.assert_close(keys, expected, rtol=1e-4, atol=1e-5)


def test_old_diffusers_names_of_a_text_encoders_layers_are_known(tmp_path: Path) -> None:
    attention, pair = "text_encoder.text_model.encoder.layers.1.self_attn", (torch.ones(2, 32), torch.ones(32, 2))
    names = {"to_q_lora": "q_proj", "to_out_lora": "out_proj", "k_proj.lora_linear_layer": "k_proj"}
    tensors = {f"{attention}.{old}.{half}.weight": pair[half == "up"] for old in names for half in ("down", "up")}
    adapter = load_adapter(files.saved(tmp_path / "old.safetensors", tensors))
    assert adapter.text_layers.keys() == {f"{attention}.{name}" for name in names.values()}
    assert adapter.card.source == "old diffusers"


def test_stock_diffusers_encodes_a_kohya_files_text_the_same(tmp_path: Path) -> None:
    pipe = tiny_bases.sd_pipeline()
    adapter = _text_adapter(pipe, tmp_path)
    ours = tara.prepare(pipe, PROMPT, [adapter], composer="sum")["prompt_embeds"]
    without = Base(pipe).encode([PROMPT]).embeddings
    pipe.load_lora_weights(tmp_path / "te.safetensors")
    theirs = Base(pipe).encode([PROMPT]).embeddings
    assert float((theirs - without).norm() / without.norm()) > 0.01
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5
