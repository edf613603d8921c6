from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from torch import Tensor

import tiny_bases
from tara.core.lora import RowLowRank
from tara.errors import TaraError
from tara.families.base import Base, TextEncoding
from tara.families.processors import TextConditioning, TextKVProcessor, install, installed, uninstall

Call = tuple[Tensor, Tensor, TextEncoding]


def _call(backbone: Base) -> Call:
    torch.manual_seed(0)
    return torch.randn(2, 4, 16, 16), torch.tensor([10, 600]), backbone.encode(["a xlo dog", "a cat"])


@pytest.mark.parametrize("stock", [AttnProcessor2_0, AttnProcessor, partial(SlicedAttnProcessor, 1)])
@torch.no_grad()
def test_installed_processors_equal_stock_ones_when_nothing_is_prepared(
    any_pipe: Any, stock: Callable[[], Any]
) -> None:
    backbone = Base(any_pipe)
    any_pipe.unet.set_attn_processor(stock())
    call = _call(backbone)
    before = backbone.predict(*call)
    backbone.install()
    assert torch.equal(backbone.predict(*call), before)


@torch.no_grad()
def test_the_texts_own_keys_and_values_change_nothing(any_pipe: Any) -> None:
    backbone = Base(any_pipe)
    call = _call(backbone)
    before = backbone.predict(*call)
    backbone.install()
    assert torch.equal(backbone.predict(*call, TextConditioning(backbone.kv(call[2].embeddings))), before)


def test_release_puts_the_very_same_processors_back(any_pipe: Any) -> None:
    before = any_pipe.unet.attn_processors
    hooks = len(any_pipe.unet._forward_pre_hooks)
    install(any_pipe.unet)
    install(any_pipe.unet)
    assert installed(any_pipe.unet)
    uninstall(any_pipe.unet)
    uninstall(any_pipe.unet)
    after = any_pipe.unet.attn_processors
    assert all(after[name] is before[name] for name in before)
    assert not installed(any_pipe.unet)
    assert len(any_pipe.unet._forward_pre_hooks) == hooks


@torch.no_grad()
def test_a_rows_delta_equals_a_changed_weight(any_pipe: Any) -> None:
    backbone = Base(any_pipe)
    backbone.install()
    latents, timesteps, encoding = _call(backbone)
    kv = backbone.kv(encoding.embeddings)
    names = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_out.0")
    paths = [f"{layer.removesuffix('attn2')}{name}" for layer in backbone.text_layers for name in names]
    scale = torch.tensor([0.0, 2.0])
    deltas: dict[str, RowLowRank] = {}
    for path in paths:
        d_in, d_out = backbone.projection_sizes(path)
        deltas[path] = RowLowRank(0.2 * torch.randn(2, 3, d_in), 0.2 * torch.randn(2, d_out, 3), scale)
    together = backbone.predict(latents, timesteps, encoding, TextConditioning(kv, deltas))
    plain = backbone.predict(latents, timesteps, encoding, TextConditioning(kv))
    for path, delta in deltas.items():
        any_pipe.unet.get_submodule(path).weight += 2.0 * delta.b[1] @ delta.a[1]
    changed = backbone.predict(latents, timesteps, encoding, TextConditioning(kv))
    assert torch.equal(together[0], plain[0])  # its scale is 0
    torch.testing.assert_close(together[1], changed[1], rtol=1e-4, atol=1e-5)
    assert (changed[1] - plain[1]).abs().max() > 0.01


def test_gradients_reach_keys_values_and_deltas_also_with_checkpointing(any_pipe: Any) -> None:
    backbone = Base(any_pipe)
    backbone.install()
    latents, timesteps, encoding = _call(backbone)
    kv = {layer: (k.requires_grad_(), v.requires_grad_()) for layer, (k, v) in backbone.kv(encoding.embeddings).items()}
    path = f"{backbone.attention_layers[0]}.to_q"
    d_in, d_out = backbone.projection_sizes(path)
    a, b = torch.ones(2, 1, d_in, requires_grad=True), torch.ones(2, d_out, 1, requires_grad=True)
    delta = RowLowRank(a, b, torch.ones(2))
    gradients: list[list[Tensor]] = []
    for checkpointing in (False, True):
        any_pipe.unet.train()
        if checkpointing:
            any_pipe.unet.enable_gradient_checkpointing()
        out = backbone.predict(latents, timesteps, encoding, TextConditioning(kv, {path: delta}))
        inputs = [part for pair in kv.values() for part in pair] + [a, b]
        gradients.append(list(torch.autograd.grad(out.square().mean(), inputs)))
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1])


@torch.no_grad()
def test_a_wrong_number_of_rows_is_refused() -> None:
    backbone = Base(tiny_bases.sd_pipeline())
    backbone.install()
    latents, timesteps, encoding = _call(backbone)
    conditioning = TextConditioning(backbone.kv(encoding.embeddings[:1]))
    with pytest.raises(TaraError, match=r"got 2 rows, but tara\.prepare made text for 1"):
        backbone.predict(latents, timesteps, encoding, conditioning)


@pytest.mark.parametrize("replace", ["slicing", "fusing", "stock"])
@torch.no_grad()
def test_replaced_processors_are_noticed(replace: str) -> None:
    pipe = tiny_bases.sd_pipeline()
    backbone = Base(pipe)
    backbone.install()
    call = _call(backbone)
    conditioning = TextConditioning(backbone.kv(call[2].embeddings))
    if replace == "slicing":
        pipe.enable_attention_slicing(1)
    elif replace == "fusing":
        pipe.fuse_qkv_projections(unet=True, vae=False)
    else:
        pipe.unet.set_attn_processor(AttnProcessor2_0())
    with pytest.raises(TaraError, match="would ignore the adapters"):
        backbone.predict(*call, conditioning)
    backbone.predict(*call)  # without our key it is nobody's business
    if replace == "fusing":
        with pytest.raises(TaraError, match="would ignore the adapters"):
            backbone.install()
    backbone.release()
    assert not any(isinstance(processor, TextKVProcessor) for processor in pipe.unet.attn_processors.values())


@torch.no_grad()
def test_slicing_before_installing_changes_no_prepared_picture(any_pipe: Any) -> None:
    backbone = Base(any_pipe)
    call = _call(backbone)
    conditioning = TextConditioning(backbone.kv(call[2].embeddings + 1))
    backbone.install()
    whole = backbone.predict(*call, conditioning)
    backbone.release()
    any_pipe.enable_attention_slicing(1)
    backbone.install()
    torch.testing.assert_close(backbone.predict(*call, conditioning), whole)
    backbone.release()
    assert all(isinstance(one, SlicedAttnProcessor) for one in any_pipe.unet.attn_processors.values())


def test_processors_that_come_back_are_the_same_ones(sd_pipe: Any) -> None:
    unet = sd_pipe.unet
    stock = dict(unet.attn_processors)
    install(unet)
    ours = dict(unet.attn_processors)
    uninstall(unet)
    assert all(unet.attn_processors[name] is processor for name, processor in stock.items())
    install(unet)
    assert all(unet.attn_processors[name] is processor for name, processor in ours.items())
    uninstall(unet)
    unet.set_attn_processor(AttnProcessor())
    install(unet)
    assert all(type(processor.stock) is AttnProcessor for processor in unet.attn_processors.values())


def test_a_failed_installation_leaves_the_processors_alone() -> None:
    pipe = tiny_bases.sd_pipeline()
    pipe.fuse_qkv_projections(unet=True, vae=False)
    before = pipe.unet.attn_processors
    with pytest.raises(TaraError, match="FusedAttnProcessor"):
        install(pipe.unet)
    assert pipe.unet.attn_processors == before
    assert not installed(pipe.unet)
