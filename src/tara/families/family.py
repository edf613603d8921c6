"""Families of bases, and which bases adapters on text keys and values can work on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tara.errors import TaraError

UNET, TEXT_ENCODERS = "unet", ("text_encoder", "text_encoder_2")
"""What the parts of a diffusers pipeline that adapters act on are called."""


@dataclass(frozen=True)
class Family:
    """What bases of one kind share; an adapter fits every base of its family."""

    name: str
    text_width: int
    text_encoders: int = 1
    size_conditioning: bool = False  # pooled text and picture sizes enter the U-Net too


FAMILIES = (
    Family("sd1", text_width=768),
    Family("sd2", text_width=1024),
    Family("sdxl", text_width=2048, text_encoders=2, size_conditioning=True),
)


def family_of(unet_config: Any) -> Family:
    """The family by the U-Net's own config; one that nobody has named yet is called after its text width.

    Raises:
        TaraError: when the U-Net's layers read texts of different widths.
    """
    if not isinstance(unet_config.cross_attention_dim, int):
        raise _unsupported("cross_attention_dim", f"it is {unet_config.cross_attention_dim}, not one width of text")
    width, sized = unet_config.cross_attention_dim, unet_config.addition_embed_type == "text_time"
    for family in FAMILIES:
        if (family.text_width, family.size_conditioning) == (width, sized):
            return family
    shape = "sdxl" if sized else "sd"
    return Family(f"{shape}-{width}", width, text_encoders=2 if sized else 1, size_conditioning=sized)


def family_of_layers(text_projections: Mapping[str, int]) -> str:
    """The family that an adapter's text projections (layer to d_in) fit; empty when they do not tell."""
    widths = set(text_projections.values())
    return next((family.name for family in FAMILIES if widths == {family.text_width}), "")


def check_supported(unet: Any) -> None:
    """Keys and values must be a linear function of the text alone.

    Raises:
        TaraError: naming the first layer where they are not.
    """
    if getattr(unet.config, "encoder_hid_dim_type", None) == "ip_image_proj":  # diffusers' mark of a loaded IP-Adapter
        raise TaraError(
            "An IP-Adapter is loaded, which brings keys and values of its own. Call pipe.unload_ip_adapter() first."
        )
    if getattr(unet, "encoder_hid_proj", None) is not None:
        raise _unsupported("encoder_hid_proj", "it projects the text before the attention layers")
    for name in unet.attn_processors:
        layer = name.removesuffix(".processor")
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
            raise _unsupported(layer, "its attn2 does not look at the text")


def _unsupported(layer: str, why: str) -> TaraError:
    return TaraError(
        f"This base does not work with adapters on text keys and values: '{layer}' is unsuited, because {why}. "
        "Use a Stable Diffusion 1.x, 2.x or SDXL base."
    )
