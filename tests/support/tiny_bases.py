"""Whole pipelines with a few random channels: the shapes of SD and SDXL, built in milliseconds from configs."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

# `xlo` is not among them and falls into `x` and `lo`, `szn` into three letters, `rex` is one token
VOCABULARY = """
a an the of in on and with beside two photo picture dog cat car toy house beach grass robot style
lo rex tom pixel red brown big nice
"""
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789'.,!?-"


def tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary of a few words; everything else falls into letters."""
    merges: list[tuple[str, str]] = []
    for word in VOCABULARY.split():
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merge = (pieces[0], pieces[1])
            pieces[:2] = ["".join(merge)]
            if merge not in merges:
                merges.append(merge)
    tokens = [*LETTERS, *(letter + "</w>" for letter in LETTERS), *("".join(merge) for merge in merges)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def _text_config(width: int, projection: int, layers: int = 2) -> CLIPTextConfig:
    size = len(tokenizer())
    return CLIPTextConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=projection,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )


def _autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )


UNET: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}


def _scheduler(prediction_type: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def sd_pipeline(prediction_type: str = "epsilon", seed: int = 0, **unet: Any) -> StableDiffusionPipeline:
    """Stable Diffusion's shape: one text encoder, cross-attention at two resolutions."""
    torch.manual_seed(seed)
    pipe = StableDiffusionPipeline(
        vae=_autoencoder(),
        text_encoder=CLIPTextModel(_text_config(32, 32)),
        tokenizer=tokenizer(),
        unet=UNet2DConditionModel(cross_attention_dim=32, **(UNET | unet)),
        scheduler=_scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _quiet(pipe)


def sdxl_pipeline(prediction_type: str = "epsilon", seed: int = 0) -> StableDiffusionXLPipeline:
    """SDXL's shape: two text encoders of different widths, a pooled vector and picture sizes."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        cross_attention_dim=24 + 40,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 20,
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        **UNET,
    )
    pipe = StableDiffusionXLPipeline(
        vae=_autoencoder(),
        text_encoder=CLIPTextModel(_text_config(24, 24)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(40, 20, layers=3)),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=unet,
        scheduler=_scheduler(prediction_type),
        add_watermarker=False,
    )
    return _quiet(pipe)


def controlnet() -> ControlNetModel:
    """A ControlNet for :func:`sd_pipeline`, with weights that matter (its zero convolutions are not zero)."""
    torch.manual_seed(1)
    net = ControlNetModel(
        cross_attention_dim=32,
        block_out_channels=UNET["block_out_channels"],
        layers_per_block=1,
        down_block_types=UNET["down_block_types"],
        attention_head_dim=4,
        norm_num_groups=8,
        conditioning_embedding_out_channels=(4, 8),
    )
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return net.eval()


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    for name in ("vae", "unet", "text_encoder", "text_encoder_2"):
        part = getattr(pipe, name, None)
        if part is not None:
            part.requires_grad_(False).eval()
    return pipe
