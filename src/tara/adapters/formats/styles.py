"""How each tool names the parts of a low-rank delta in its files."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from tara.adapters.formats.names import ROOTS, TEXT_ROOTS, flatten, from_sgm, sgm_layers_per_block, unflatten
from tara.families.text import TEXT_ENCODERS

UNET = "unet"  # what adapter files call the denoiser of a U-Net family
Role = Literal["down", "up", "alpha"]

_MODEL = r"(?:(?P<model>unet|text_encoder|text_encoder_2)\.)?"
_LAYER = r"(?P<layer>[\w.]+?)"
_ADAPTER = r"(?:\.\w+)?"  # PEFT's name of the adapter, in the state dict of a model that it wraps

_PROJECTION = r"(?:\.processor)?\.(?P<projection>to_q|to_k|to_v|to_out)_lora"

_KOHYA_MODEL = r"lora_(?P<model>unet|te|te1|te2)[_.]"  # the rest is mostly flattened, but some files keep the dots
_COMFY_MODEL = r"(?P<model>diffusion_model|text_encoders\.clip_[lgh]\.transformer)\."
_HALF = rf"(?P<role>lora_down|lora_up|lora_A|lora_B){_ADAPTER}\.weight"
_ALPHA = r"(?P<role>alpha)"

KOHYA, COMFY, DIFFUSERS = "kohya", "ComfyUI", "diffusers"
_PATTERNS = {
    KOHYA: [rf"{_KOHYA_MODEL}{_LAYER}\.{_HALF}", rf"{_KOHYA_MODEL}{_LAYER}\.{_ALPHA}"],
    COMFY: [rf"{_COMFY_MODEL}{_LAYER}\.{_HALF}", rf"{_COMFY_MODEL}{_LAYER}\.{_ALPHA}"],
    "PEFT": [rf"base_model\.model\.{_MODEL}{_LAYER}\.(?P<role>lora_A|lora_B){_ADAPTER}\.weight"],
    DIFFUSERS: [rf"{_MODEL}{_LAYER}\.(?P<role>lora_A|lora_B){_ADAPTER}\.weight"],
    "saved U-Net": [rf"{_LAYER}\.lora_layer\.(?P<role>down|up)\.weight"],
    "old diffusers": [
        rf"{_MODEL}{_LAYER}{_PROJECTION}\.(?P<role>down|up)\.weight",
        rf"{_MODEL}{_LAYER}\.(?:lora|lora_linear_layer)\.(?P<role>down|up)\.weight",
        rf"{_MODEL}{_LAYER}{_PROJECTION}\.(?P<role>alpha)",
        rf"{_MODEL}{_LAYER}(?:\.lora)?\.(?P<role>alpha)",
    ],
}
STYLES = [(style, re.compile(pattern)) for style, patterns in _PATTERNS.items() for pattern in patterns]
"""Each style's name and what its keys look like, in the order in which they are tried."""

_ROLES: Mapping[str, Role] = {
    "lora_down": "down",
    "lora_up": "up",
    "lora_A": "down",
    "lora_B": "up",
    "down": "down",
    "up": "up",
    "alpha": "alpha",
}
# old diffusers' names of an attention's layers
_PROJECTIONS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
_TEXT_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_MODELS = {
    "te": "text_encoder",
    "te1": "text_encoder",
    "te2": "text_encoder_2",
    "diffusion_model": UNET,
    "text_encoders.clip_l.transformer": "text_encoder",
    "text_encoders.clip_h.transformer": "text_encoder",  # of SD 2.x
    "text_encoders.clip_g.transformer": "text_encoder_2",
}
_LIKE_CHECKPOINTS = (KOHYA, COMFY)  # their layers may be called as in original checkpoints, with the blocks of sgm

KEPT_KEYS = 8192  # parsed ones: adapters of one base have the same keys, a few thousand at most

DIFFERENCES = (".diff", ".diff_b")
"""The ends of the names of a weight's and a bias's own difference."""

# what a plain pair of matrices cannot stand for; the first that fits names it
_OTHER_METHODS = {
    "LoHa": r"\.hada_[wt]\d",
    "LoKr": r"\.lokr_[wt]\d",
    "DoRA": r"\.dora_scale|\.lora_magnitude_vector",
    "LoCon with a Tucker core": r"\.lora_mid\.",
    "OFT": r"\.b?oft_",
    "a full difference of weights": r"\.diff(_b)?$",
    "GLoRA": r"\.[ab][12]\.weight$",
    "IA3": r"\.on_input$",
    "a trained norm": r"\.[wb]_norm$",
    "a LoRA with biases": r"\.lora_(B|up)(\.\w+)?\.bias$",
    "a LoRA of token embeddings": r"\.lora_embedding_[AB]",
    "a LoRA bundled with textual-inversion embeddings": r"^bundle_emb\.",
}


@dataclass(frozen=True)
class Part:
    """What one tensor of a file is: ``model`` is unet, text_encoder or text_encoder_2, ``layer`` a path inside it."""

    model: str
    layer: str
    role: Role
    style: str


def other_method(key: str) -> str | None:
    """The name of the method, other than plain LoRA, that a key belongs to."""
    return next((name for name, pattern in _OTHER_METHODS.items() if re.search(pattern, key)), None)


def is_embedding(keys: Sequence[str]) -> bool:
    """Whether a file holds a textual inversion.

    A1111 and kohya write ``emb_params``, or for SDXL ``clip_l`` and ``clip_g``; diffusers the word itself.
    """
    return (len(keys) == 1 and "." not in keys[0]) or (bool(keys) and set(keys) <= {"clip_l", "clip_g"})


def parts(keys: Iterable[str]) -> dict[str, Part | None]:
    """What the tensors of a file are by their keys; None for a key of no known style."""
    matches = {key: _match(key) for key in keys}
    flat = [flatten(match["layer"]) for style, match in filter(None, matches.values()) if style in _LIKE_CHECKPOINTS]
    layers_per_block = sgm_layers_per_block(flat)
    return {key: _part(key, layers_per_block) for key in matches}


@lru_cache(KEPT_KEYS)
def _match(key: str) -> tuple[str, re.Match[str]] | None:
    for style, pattern in STYLES:
        if match := pattern.fullmatch(key):
            return style, match
    return None


@lru_cache(KEPT_KEYS)
def _part(key: str, layers_per_block: int) -> Part | None:
    found = _match(key)
    if found is None:
        return None
    style, match = found
    named, layer = match.groupdict(), match["layer"]
    model = named.get("model") or (TEXT_ENCODERS[0] if layer.startswith(TEXT_ROOTS) else UNET)
    model = _MODELS.get(model, model)
    if style in _LIKE_CHECKPOINTS:
        layer = from_sgm(flatten(layer), layers_per_block) if model == UNET else unflatten(flatten(layer))
    if projection := named.get("projection"):
        layer += "." + (_PROJECTIONS if model == UNET else _TEXT_PROJECTIONS)[projection]
    if model in TEXT_ENCODERS and layer.startswith("encoder."):
        layer = f"text_model.{layer}"  # transformers 5 has no such part of the path any more
    prefixed = style == DIFFUSERS and named["model"] == UNET  # as tara's own files are; each family has its own layers
    if not prefixed and not layer.startswith(ROOTS if model == UNET else TEXT_ROOTS):
        return None
    return Part(model, layer, _ROLES[match["role"]], style)
