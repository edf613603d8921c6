"""A base as loaded: encoding, prediction, its parts and their devices."""

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import nn

import tiny_bases
from tara.errors import TaraError
from tara.families.base import Base, TextEncoding
from tara.families.registry import FAMILIES, family_of


@pytest.mark.parametrize("clip_skip", [None, 1])
def test_texts_are_encoded_as_the_stock_pipeline_does(any_pipe: Any, clip_skip: int | None) -> None:
    base = Base(any_pipe)
    two_encoders = hasattr(any_pipe, "text_encoder_2")
    if clip_skip and not two_encoders:
        pytest.skip("diffusers 0.42 cannot do this with transformers 5; see the test below")
    found = any_pipe.encode_prompt(
        prompt="a xlo dog", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, clip_skip=clip_skip
    )
    positive, negative = base.encode(["a xlo dog"], clip_skip), base.encode_negative(None)
    assert torch.equal(positive.embeddings, found[0])
    assert torch.equal(negative.embeddings, found[1])
    if two_encoders:
        assert positive.pooled is not None
        assert negative.pooled is not None
        assert torch.equal(positive.pooled, found[2])
        assert torch.equal(negative.pooled, found[3])


def test_clip_skip_leaves_the_encoders_last_layers_out(sd_pipe: StableDiffusionPipeline) -> None:
    encoding = Base(sd_pipe).encode(["a xlo dog"], clip_skip=1)
    assert torch.equal(
        Base(sd_pipe).encode(["a xlo dog"], clip_skip=0).embeddings,
        Base(sd_pipe).encode(["a xlo dog"]).embeddings,
    )
    model: Any = sd_pipe.text_encoder
    encoder: Any = getattr(model, "text_model", model)  # as older versions of transformers nest it
    encoder.encoder.layers = encoder.encoder.layers[:-1]
    assert torch.equal(Base(sd_pipe).encode(["a xlo dog"]).embeddings, encoding.embeddings)
    with pytest.raises(TaraError, match="clip_skip is 2"):
        Base(sd_pipe).encode(["a xlo dog"], clip_skip=2)


def test_a_texts_encoding_does_not_depend_on_its_neighbours(any_pipe: Any) -> None:
    base = Base(any_pipe)
    together, alone = base.encode(["a cat", "a xlo dog"]), base.encode(["a xlo dog"])
    assert torch.equal(together.take([1]).embeddings, alone.embeddings)
    assert together.take([1]).tokenized == alone.tokenized
    assert torch.equal(TextEncoding.join([alone, together]).embeddings, together.take([1, 0, 1]).embeddings)


def test_tokens_know_their_characters_and_what_was_lost(sd_pipe: StableDiffusionPipeline) -> None:
    base = Base(sd_pipe)
    short = base.tokenize("A XLO dog")
    assert short.positions((2, 5)) == (2, 3)
    assert short.lost == ""
    assert len(short.offsets) == 77
    long = base.tokenize("big " * 75 + "xlo dog")
    assert long.lost == "xlo dog"
    edge = base.tokenize("big " * 74 + "xlo")  # its second piece does not fit
    assert not edge.holds((74 * 4, 74 * 4 + 3))


def test_latents_are_scaled_as_diffusers_scales_them(sd_pipe: StableDiffusionPipeline) -> None:
    base = Base(sd_pipe)
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, deviation = base.encode_images(pixels)
    with torch.no_grad():
        posterior = sd_pipe.vae.encode(pixels).latent_dist
        scale = sd_pipe.vae.config.scaling_factor
        torch.testing.assert_close(mean, posterior.mean * scale)
        torch.testing.assert_close(deviation, posterior.std * scale)
    assert (base.vae_scale, base.resolution) == (2, 32)


def test_families_are_read_from_the_models_config(
    sd_pipe: StableDiffusionPipeline, sdxl_pipe: StableDiffusionXLPipeline
) -> None:
    assert family_of(sd_pipe).name == "sd-32"
    assert family_of(sdxl_pipe).name == "sdxl-64"
    assert len({family.name for family in FAMILIES}) == 3
    assert Base(tiny_bases.sd_pipeline("v_prediction")).noise_schedule.prediction_type == "v_prediction"


def test_a_base_with_texts_of_several_widths_is_refused_by_name(sd_pipe: StableDiffusionPipeline) -> None:
    sd_pipe.unet.register_to_config(cross_attention_dim=[32, 48])
    with pytest.raises(TaraError, match=r"'cross_attention_dim' is unsupported, because it is \[32, 48\]"):
        Base(sd_pipe)


def _norm_cross(pipe: Any) -> None:
    pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.norm_cross = nn.LayerNorm(32)


def _added(pipe: Any) -> None:
    pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.add_k_proj = nn.Linear(32, 32)


def _projected(pipe: Any) -> None:
    pipe.unet.encoder_hid_proj = nn.Linear(32, 32)


def _double_cross(pipe: Any) -> None:
    pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.is_cross_attention = True


@pytest.mark.parametrize(
    ("change", "named"),
    [(_norm_cross, "attn2"), (_added, "attn2"), (_projected, "encoder_hid_proj"), (_double_cross, "attn1")],
)
def test_an_unsuited_base_is_refused_by_the_layers_name(
    sd_pipe: StableDiffusionPipeline, change: Any, named: str
) -> None:
    Base(sd_pipe)
    change(sd_pipe)
    with pytest.raises(
        TaraError, match=rf"'(mid_block\.attentions\.0\.transformer_blocks\.0\.)?{named}' is unsupported"
    ):
        Base(sd_pipe)


def test_a_loaded_ip_adapter_is_named(sd_pipe: StableDiffusionPipeline) -> None:
    _projected(sd_pipe)
    sd_pipe.unet.config.encoder_hid_dim_type = "ip_image_proj"  # as load_ip_adapter does
    with pytest.raises(TaraError, match="An IP-Adapter is loaded"):
        Base(sd_pipe)


def test_a_base_with_only_cross_attention_is_refused() -> None:
    with pytest.raises(TaraError, match="attn1' is unsupported"):
        Base(tiny_bases.sd_pipeline(only_cross_attention=True))


def test_something_without_a_known_family_is_refused() -> None:
    with pytest.raises(TaraError, match="A object belongs to no family that tara knows"):
        Base(object())


def test_offloaded_parts_come_back_to_the_unets_device(
    sd_pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
):
    base = Base(sd_pipe)
    base.onload()
    assert base.vae.device.type == "cpu"
    monkeypatch.setattr(Base, "device", torch.device("meta"))  # not the CPU, and on every machine
    base.text_encoders[0]._hf_hook = object()  # accelerate moves it by itself
    base.onload()
    assert (base.vae.device.type, base.text_encoders[0].device.type) == ("meta", "cpu")
