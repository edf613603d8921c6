from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from torch import Tensor

import tiny_bases
from tara.core.lora import LowRank
from tara.errors import TaraError
from tara.families.base import Base
from tara.families.processors import AttentionProcessors, TextConditioning, TextKVProcessor
from tara.families.text import TextEncoding

Call = tuple[Tensor, Tensor, TextEncoding]


def _call(base: Base) -> Call:
    torch.manual_seed(0)
    return torch.randn(2, 4, 16, 16), torch.tensor([10, 600]), base.encode(["a xlo dog", "a cat"])


@pytest.mark.parametrize("stock", [AttnProcessor2_0, AttnProcessor, partial(SlicedAttnProcessor, 1)])
@torch.no_grad()
def test_installed_processors_equal_stock_ones_with_and_without_prepared_text(
    any_pipe: Any, stock: Callable[[], Any]
) -> None:
    base = Base(any_pipe)
    any_pipe.unet.set_attn_processor(stock())
    call = _call(base)
    before = base.predict(*call)
    base.processors.install()
    assert torch.equal(base.predict(*call), before)
    assert torch.equal(base.predict(*call, TextConditioning(base.project_text(call[2].embeddings))), before)


@torch.no_grad()
def test_a_rows_delta_equals_a_changed_weight(any_pipe: Any) -> None:
    base = Base(any_pipe)
    base.processors.install()
    latents, timesteps, encoding = _call(base)
    kv = base.project_text(encoding.embeddings)
    names = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_out.0")
    paths = [f"{layer.removesuffix('attn2')}{name}" for layer in base.text_layers for name in names]
    deltas: dict[str, LowRank] = {}
    for path in paths:
        d_in, d_out = base.projection_sizes(path)
        b = 0.2 * torch.randn(2, d_out, 3) * torch.tensor([0.0, 1.0])[:, None, None]
        deltas[path] = LowRank(0.2 * torch.randn(2, 3, d_in), b, 2.0)
    together = base.predict(latents, timesteps, encoding, TextConditioning(kv, deltas))
    plain = base.predict(latents, timesteps, encoding, TextConditioning(kv))
    for path, delta in deltas.items():
        any_pipe.unet.get_submodule(path).weight += 2.0 * delta.b[1] @ delta.a[1]
    changed = base.predict(latents, timesteps, encoding, TextConditioning(kv))
    assert torch.equal(together[0], plain[0])  # its delta is zero
    torch.testing.assert_close(together[1], changed[1], rtol=1e-4, atol=1e-5)
    assert (changed[1] - plain[1]).abs().max() > 0.01


def test_gradients_reach_keys_values_and_deltas_also_with_checkpointing(any_pipe: Any) -> None:
    base = Base(any_pipe)
    base.processors.install()
    latents, timesteps, encoding = _call(base)
    kv = {
        layer: (k.requires_grad_(), v.requires_grad_())
        for layer, (k, v) in base.project_text(encoding.embeddings).items()
    }
    path = f"{base.attention_layers[0]}.to_q"
    d_in, d_out = base.projection_sizes(path)
    a, b = torch.ones(2, 1, d_in, requires_grad=True), torch.ones(2, d_out, 1, requires_grad=True)
    gradients: list[list[Tensor]] = []
    for checkpointing in (False, True):
        any_pipe.unet.train()
        if checkpointing:
            any_pipe.unet.enable_gradient_checkpointing()
        out = base.predict(latents, timesteps, encoding, TextConditioning(kv, {path: LowRank(a, b, 1.0)}))
        inputs = [part for pair in kv.values() for part in pair] + [a, b]
        gradients.append(list(torch.autograd.grad(out.square().mean(), inputs)))
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1])


@torch.no_grad()
def test_a_wrong_number_of_rows_or_another_networks_text_is_refused() -> None:
    base = Base(tiny_bases.sd_pipeline())
    base.processors.install()
    latents, timesteps, encoding = _call(base)
    conditioning = TextConditioning(base.project_text(encoding.embeddings[:1]))
    with pytest.raises(TaraError, match=r"got 2 rows, but tara\.prepare made text for 1"):
        base.predict(latents, timesteps, encoding, conditioning)
    kv = base.project_text(encoding.embeddings)
    with pytest.raises(TaraError, match=rf"prepared text has no keys and values for '{base.text_layers[0]}'"):
        base.predict(latents, timesteps, encoding, TextConditioning({"other": kv.popitem()[1]}))


@pytest.mark.parametrize("replace", ["slicing", "fusing", "stock"])
@torch.no_grad()
def test_replaced_processors_are_noticed(replace: str) -> None:
    pipe = tiny_bases.sd_pipeline()
    base = Base(pipe)
    base.processors.install()
    call = _call(base)
    conditioning = TextConditioning(base.project_text(call[2].embeddings))
    if replace == "slicing":
        pipe.enable_attention_slicing(1)
    elif replace == "fusing":
        pipe.fuse_qkv_projections(unet=True, vae=False)
    else:
        pipe.unet.set_attn_processor(AttnProcessor2_0())
    with pytest.raises(TaraError, match="would ignore the adapters"):
        base.predict(*call, conditioning)
    base.predict(*call)  # without our key it is nobody's business
    if replace == "fusing":
        with pytest.raises(TaraError, match="would ignore the adapters"):
            base.processors.install()
    base.processors.release()
    assert not any(isinstance(processor, TextKVProcessor) for processor in pipe.unet.attn_processors.values())


@torch.no_grad()
def test_slicing_before_installing_changes_no_prepared_image(any_pipe: Any) -> None:
    base = Base(any_pipe)
    call = _call(base)
    conditioning = TextConditioning(base.project_text(call[2].embeddings + 1))
    base.processors.install()
    whole = base.predict(*call, conditioning)
    base.processors.release()
    any_pipe.enable_attention_slicing(1)
    base.processors.install()
    torch.testing.assert_close(base.predict(*call, conditioning), whole)
    base.processors.release()
    assert all(isinstance(one, SlicedAttnProcessor) for one in any_pipe.unet.attn_processors.values())


def test_installing_and_releasing_twice_is_doing_it_once(any_pipe: Any) -> None:
    before = any_pipe.unet.attn_processors
    processors = Base(any_pipe).processors
    processors.install()
    processors.install()
    assert processors.installed
    assert Base(any_pipe).processors is processors
    processors.release()
    processors.release()
    assert not processors.installed
    assert all(any_pipe.unet.attn_processors[name] is processor for name, processor in before.items())


def test_processors_that_come_back_are_the_same_ones(sd_pipe: Any) -> None:
    unet = sd_pipe.unet
    processors = Base(sd_pipe).processors
    processors.install()
    ours = dict(unet.attn_processors)
    processors.release()
    processors.install()
    assert all(unet.attn_processors[name] is processor for name, processor in ours.items())
    processors.release()
    unet.set_attn_processor(AttnProcessor())
    processors.install()
    assert all(type(processor.stock) is AttnProcessor for processor in unet.attn_processors.values())


def test_a_failed_installation_leaves_the_processors_alone() -> None:
    pipe = tiny_bases.sd_pipeline()
    pipe.fuse_qkv_projections(unet=True, vae=False)
    before = pipe.unet.attn_processors
    processors: AttentionProcessors = Base(pipe).processors
    with pytest.raises(TaraError, match="FusedAttnProcessor"):
        processors.install()
    assert pipe.unet.attn_processors == before
    assert not processors.installed
