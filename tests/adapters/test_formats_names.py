"""Flattened and sgm names against the real U-Nets of SD 1.5 and SDXL, built from their public configs."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tara.adapters.formats.names import from_sgm, layers_per_block, sgm_layers_per_block, to_sgm, unflatten

CONFIGS: dict[str, dict[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": {
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


@cache
def _unet(name: str) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**CONFIGS[name])


def _layers(model: nn.Module) -> list[str]:
    """Paths of everything that a LoRA can change."""
    return [path for path, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_layer_of_a_real_unet_is_found_by_its_flattened_name(name: str) -> None:
    paths = _layers(_unet(name))
    assert len(paths) > 200
    assert [unflatten(path.replace(".", "_")) for path in paths] == paths
    assert [from_sgm(path.replace(".", "_"), 2) for path in paths] == paths


def test_every_layer_of_a_text_encoder_is_found_by_its_flattened_name() -> None:
    with torch.device("meta"):
        encoder = CLIPTextModelWithProjection(CLIPTextConfig(num_hidden_layers=2))
    paths = [f"text_model.{path.removeprefix('text_model.')}" for path in _layers(encoder) if path != "text_projection"]
    assert [unflatten(path.replace(".", "_")) for path in [*paths, "text_projection"]] == [*paths, "text_projection"]


@pytest.mark.parametrize("name", CONFIGS)
def test_sgm_names_lead_there_and_back(name: str) -> None:
    paths = [path for path in _layers(_unet(name)) if name == "sdxl" or "upsamplers" not in path]
    names = [to_sgm(path, 2) for path in paths]
    assert len(set(names)) == len(names)
    assert [from_sgm(name, sgm_layers_per_block(names)) for name in names] == paths
    assert layers_per_block(paths) == 2


def test_sdxls_names_are_those_of_the_sgm_unet() -> None:
    names = {to_sgm(path, 2) for path in _layers(_unet("sdxl"))}
    attention = {name.partition("_transformer_blocks")[0] for name in names if "transformer_blocks" in name}
    outputs = {f"output_blocks_{number}_1" for number in range(6)}
    assert attention == {"middle_block_1", *(f"input_blocks_{number}_1" for number in (4, 5, 7, 8)), *outputs}
    assert {
        "input_blocks_0_0",
        "input_blocks_3_0_op",
        "input_blocks_4_0_skip_connection",
        "middle_block_2_out_layers_3",
        "output_blocks_2_2_conv",
        "output_blocks_8_0_in_layers_2",
        "time_embed_0",
        "label_emb_0_2",
        "out_2",
    } <= names


def test_stock_diffusers_finds_the_same_layers_behind_sdxls_names() -> None:
    unet = _unet("sdxl")
    found: dict[str, str] = {}
    for path in _layers(unet):
        if "attentions" in path:
            down, up = (f"lora_unet_{to_sgm(path, 2)}.lora_{half}.weight" for half in ("down", "up"))
            theirs, _ = StableDiffusionXLPipeline.lora_state_dict(
                {down: torch.zeros(1), up: torch.zeros(1)}, unet_config=unet.config
            )
            found[path] = min(theirs)
    assert len(found) > 700
    assert {path: _plain(key) for path, key in found.items()} == {path: path for path in found}


def _plain(key: str) -> str:
    """``unet.{attn}.processor.to_out_lora.down.weight`` or ``unet.{layer}.lora.down.weight`` to the layer's path."""
    path = key.removeprefix("unet.").removesuffix(".down.weight").removesuffix(".lora")
    return path.replace(".processor", "").replace("to_out_lora", "to_out.0").removesuffix("_lora")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["input_blocks_1_1_proj_in", "input_blocks_3_1_proj_in"], 1),
        (["input_blocks_4_1_proj_in", "input_blocks_8_1_proj_in"], 2),
        (["input_blocks_1_0_in_layers_2", "input_blocks_2_0_op"], 1),
        (["input_blocks_3_0_op"], 2),
        (["input_blocks_2_1_proj_in", "input_blocks_4_0_op"], 3),
        (["output_blocks_0_1_proj_in"], 2),
        ([], 2),
    ],
)
def test_the_places_of_layers_tell_how_many_a_block_has(names: Iterable[str], expected: int) -> None:
    assert sgm_layers_per_block(names) == expected
