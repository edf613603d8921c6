"""Stable Diffusion 1.x, 2.x and SDXL: a U-Net whose ``attn2`` layers read the text, with CLIP text encoders."""

from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from tara.core.losses import PredictionType
from tara.errors import TaraError
from tara.families.family import Defaults, Family, FileNames, Task, attentions
from tara.families.processors import CONDITIONING_KEY, TextConditioning
from tara.families.text import TextEncoding, encode_with_pipeline, tokenize, with_inversions

USE_A_BASE = "Use a Stable Diffusion 1.x, 2.x or SDXL base."
STOCK_INPAINTING = (4, 9)  # input channels of the U-Nets that diffusers' inpainting pipelines take


def _check(pipe: Any) -> None:
    """Refuse (TaraError) a U-Net whose text keys and values are not a linear function of the text alone."""
    unet = pipe.unet
    if getattr(unet.config, "encoder_hid_dim_type", None) == "ip_image_proj":  # diffusers' mark of a loaded IP-Adapter
        raise TaraError(
            "An IP-Adapter is loaded, which adds keys and values of its own. Call pipe.unload_ip_adapter() first."
        )
    if getattr(unet, "encoder_hid_proj", None) is not None:
        raise _unsupported("encoder_hid_proj", "it projects the text before the attention layers")
    if not isinstance(unet.config.cross_attention_dim, int):
        raise _unsupported("cross_attention_dim", f"it is {unet.config.cross_attention_dim}, not one width of text")
    for layer in attentions(unet):
        attn = unet.get_submodule(layer)
        if getattr(attn, "add_k_proj", None) is not None:
            raise _unsupported(layer, "it has added keys and values")
        if not layer.endswith(".attn2"):
            if attn.is_cross_attention:
                raise _unsupported(layer, "it is a cross-attention outside attn2")
            continue
        if attn.norm_cross:
            raise _unsupported(layer, "it normalises the text (norm_cross)")
        if not attn.is_cross_attention:
            raise _unsupported(layer, "its attn2 does not attend to the text")


def _unsupported(layer: str, why: str) -> TaraError:
    return TaraError(
        f"This base does not work with adapters on text keys and values: '{layer}' is unsupported, because {why}. "
        f"{USE_A_BASE}"
    )


def _check_trainable(pipe: Any) -> None:
    channels, latents = int(pipe.unet.config.in_channels), int(pipe.vae.config.latent_channels)
    if channels != latents:
        raise TaraError(
            f"This base's U-Net takes {channels} channels, but its latents have {latents}: it is for inpainting or "
            "editing. Train on a text-to-image base; its adapters work here too."
        )
    prediction = str(pipe.scheduler.config.get("prediction_type"))
    if prediction not in get_args(PredictionType) or not hasattr(pipe.scheduler, "alphas_cumprod"):
        raise TaraError(
            f"This base's {type(pipe.scheduler).__name__} has prediction type '{prediction}', which tara cannot train. "
            f"Use a base with one of {', '.join(get_args(PredictionType))}."
        )


def _encode(pipe: Any, text: str, clip_skip: int | None, device: torch.device) -> TextEncoding:
    if clip_skip is None or getattr(pipe, "text_encoder_2", None) is not None:
        return encode_with_pipeline(pipe, text, clip_skip, device)
    # computed here: for clip_skip diffusers 0.42 uses `text_model`, which the encoders of transformers 5 do not have
    tokenizer, encoder = pipe.tokenizer, pipe.text_encoder
    if not 0 <= clip_skip < encoder.config.num_hidden_layers:
        raise TaraError(f"clip_skip is {clip_skip}. Give 0 to {encoder.config.num_hidden_layers - 1}.")
    text = with_inversions(pipe, tokenizer, text)
    length = int(tokenizer.model_max_length)
    tokens = tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
    hidden = encoder(tokens.input_ids.to(encoder.device), attention_mask=mask, output_hidden_states=True)
    norm = getattr(encoder, "text_model", encoder).final_layer_norm
    embeddings: Tensor = norm(hidden.hidden_states[-(clip_skip + 1)]).to(device)
    return TextEncoding(embeddings, None, (tokenize(pipe, text),))


def _predict(
    unet: nn.Module,
    latents: Tensor,
    timesteps: Tensor,
    encoding: TextEncoding,
    conditioning: TextConditioning | None,
    sizes: Tensor,
) -> Tensor:
    """One network call. SDXL also gets ``sizes`` (its size conditioning, arXiv 2307.01952) and the pooled text."""
    added: dict[str, Tensor] = {}
    if encoding.pooled is not None:
        added = {"text_embeds": encoding.pooled, "time_ids": sizes.to(encoding.pooled)}
    return unet(
        latents,
        timesteps,
        encoding.embeddings,
        cross_attention_kwargs=None if conditioning is None else {CONDITIONING_KEY: conditioning},
        added_cond_kwargs=added,
        return_dict=False,
    )[0]


def _task_pipeline(pipe: Any, task: Task) -> Any:
    from diffusers.pipelines.auto_pipeline import (
        AutoPipelineForImage2Image,
        AutoPipelineForInpainting,
        AutoPipelineForText2Image,
    )

    if task == "inpainting" and pipe.unet.config.in_channels not in STOCK_INPAINTING:
        raise TaraError("This base's U-Net cannot inpaint. Leave the mask out, or use an inpainting base.")
    pipelines = {
        "text-to-image": AutoPipelineForText2Image,
        "image-to-image": AutoPipelineForImage2Image,
        "inpainting": AutoPipelineForInpainting,
    }
    return pipelines[task].from_pipe(pipe)


def _is_guided(pipe: Any, guidance_scale: float) -> bool:
    # as in the stock pipelines' do_classifier_free_guidance
    return guidance_scale > 1 and pipe.unet.config.time_cond_proj_dim is None


SD1 = Family(
    name="sd1",
    denoiser="unet",
    text_width=768,
    defaults=Defaults(resolution=512),
    files=FileNames(architecture={"": "stable-diffusion-v1"}, kohya_base={"": "sd_v1"}, hub_tag="stable-diffusion"),
    check=_check,
    check_trainable=_check_trainable,
    encode=_encode,
    predict=_predict,
    latent_multiple=lambda unet: 2 ** (len(unet.config.block_out_channels) - 1),  # each block but one halves the sides
    task_pipeline=_task_pipeline,
    is_guided=_is_guided,
)
SD2 = replace(
    SD1,
    name="sd2",
    text_width=1024,
    defaults=Defaults(),
    files=FileNames(
        architecture={"": "stable-diffusion-v2-512", "v_prediction": "stable-diffusion-v2-768-v"},
        kohya_base={"": "sd_v2", "v_prediction": "sd_v2_v"},
        hub_tag="stable-diffusion",
    ),
)
SDXL = replace(
    SD1,
    name="sdxl",
    text_width=2048,
    defaults=Defaults(resolution=1024),
    files=FileNames(
        architecture={"": "stable-diffusion-xl-v1-base"},
        kohya_base={"": "sdxl_base_v1-0"},
        sgm_blocks=True,
        hub_tag="stable-diffusion-xl",
    ),
)


def stable_diffusion(pipe: Any) -> Family | None:
    """The family of a Stable Diffusion pipeline, from its U-Net's config. None for any other pipeline.

    A U-Net with a text width that no released family has gets a new family, whose name includes the width.
    """
    if not all(hasattr(pipe, part) for part in ("unet", "vae", "tokenizer", "encode_prompt")):
        return None
    width, sized = pipe.unet.config.cross_attention_dim, pipe.unet.config.addition_embed_type == "text_time"
    if (family := released(width, sized)) is not None:
        return family
    if not isinstance(width, int):
        return SD1  # the check of SD1 then refuses the pipeline
    like = SDXL if sized else SD1
    return replace(like, name=f"{'sdxl' if sized else 'sd'}-{width}", text_width=width, defaults=Defaults())


def released(text_width: object, size_conditioning: bool) -> Family | None:
    """The family with this text width, and with or without SDXL's size conditioning."""
    families = [family for family in (SD1, SD2, SDXL) if family.text_width == text_width]
    return next((family for family in families if (family is SDXL) == size_conditioning), None)
