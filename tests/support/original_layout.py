"""A pipeline's weights under the names that they have in original checkpoints (CompVis, Stability), for tests.

Written after those repositories' modules, and independent of diffusers' own converter, which it is to check.
"""

import re
from typing import Any

import torch
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
OPEN_CLIP = {
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "layer_norm": "ln_",
    "self_attn": "attn",
    "fc1": "c_fc",
    "fc2": "c_proj",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def original_weights(pipe: Any, family: str) -> dict[str, Tensor]:
    """All weights of a pipeline, as one original checkpoint of the family names them."""
    found = {f"model.diffusion_model.{key}": value for key, value in _unet(pipe.unet).items()}
    found |= {f"first_stage_model.{key}": value for key, value in original_vae(pipe.vae).items()}
    clip = {f"text_model.{key.removeprefix('text_model.')}": v for key, v in pipe.text_encoder.state_dict().items()}
    if family == "sd1":
        found |= {f"cond_stage_model.transformer.{key}": value for key, value in clip.items()}
    elif family == "sd2":
        found |= {f"cond_stage_model.model.{key}": value for key, value in _open_clip(clip).items()}
    else:
        second = _open_clip(pipe.text_encoder_2.state_dict())
        found |= {f"conditioner.embedders.0.transformer.{key}": value for key, value in clip.items()}
        found |= {f"conditioner.embedders.1.model.{key}": value for key, value in second.items()}
    return {key: value.contiguous().clone() for key, value in found.items()}


def _unet(unet: Any) -> dict[str, Tensor]:
    return {_unet_name(unet, key): value for key, value in unet.state_dict().items()}


def _unet_name(unet: Any, key: str) -> str:
    step = unet.config.layers_per_block + 1
    for ours, theirs in UNET.items():
        if key.startswith(f"{ours}."):
            return key.replace(ours, theirs, 1)
    side, block, kind, number, offload = re.fullmatch(
        r"(down|mid|up)_blocks?\.?(\d*)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", key
    ).groups()  # type: ignore[union-attr] -- a test may fail here
    if kind == "resnets":
        name, _, end = offload.rpartition(".")
        offload = f"{RESNET[name]}.{end}"
    part = {"resnets": 0, "attentions": 1}.get(kind)
    if side == "mid":
        return f"middle_block.{1 if part else 2 * int(number)}.{offload}"
    first = int(block) * step
    if kind == "downsamplers":
        return f"input_blocks.{first + step}.0.op.{offload.removeprefix('conv.')}"
    if kind == "upsamplers":
        with_attention = hasattr(unet.up_blocks[int(block)], "attentions")
        return f"output_blocks.{first + step - 1}.{2 if with_attention else 1}.{offload}"
    if side == "down":
        return f"input_blocks.{1 + first + int(number)}.{part}.{offload}"
    return f"output_blocks.{first + int(number)}.{part}.{offload}"


def original_vae(vae: Any) -> dict[str, Tensor]:
    """An autoencoder's weights, as a file of their own names them."""
    blocks = len(vae.config.up_block_types)
    entries = (_vae_entry(key, value, blocks) for key, value in vae.state_dict().items())
    return {key: value.contiguous().clone() for key, value in entries}


def _vae_entry(key: str, value: Tensor, blocks: int) -> tuple[str, Tensor]:
    key = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", key)
    key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", key)
    key = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda found: f"up.{blocks - 1 - int(found[1])}.block.", key)
    key = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda found: f"up.{blocks - 1 - int(found[1])}.upsample.", key)
    key = re.sub(r"mid_block\.resnets\.(\d)\.", lambda found: f"mid.block_{int(found[1]) + 1}.", key)
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    if "mid_block.attentions.0." in key:
        key = key.replace("mid_block.attentions.0.", "mid.attn_1.")
        for ours, theirs in VAE_ATTENTION.items():
            key = key.replace(f".{ours}.", f".{theirs}.")
        if value.ndim == 2:
            value = value[:, :, None, None]  # a convolution of one pixel
    return key, value


def _open_clip(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, value in weights.items():
        if key == "text_projection.weight":
            found["text_projection"] = value.T
            continue
        if ".k_proj." in key or ".v_proj." in key:
            continue
        if ".q_proj." in key:
            value = torch.cat([weights[key.replace("q_proj", f"{part}_proj")] for part in "qkv"])
            key = key.replace("q_proj.", "in_proj_")
        for ours, theirs in OPEN_CLIP.items():
            key = key.replace(ours, theirs)
        found[key] = value
    return found
