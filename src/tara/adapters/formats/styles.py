"""The key names that each tool uses for the parts of a low-rank delta."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tara.adapters.formats.names import ROOTS, TEXT_ROOTS, flatten, from_sgm, sgm_layers_per_block, unflatten
from tara.families.text import TEXT_ENCODERS

UNET = "unet"  # what adapter files call the denoiser of a U-Net family
Role = str
"""What a tensor is to its layer: ``down``, ``up``, ``alpha``, or a role of `tara.adapters.formats.methods`."""

_MODEL = r"(?:(?P<model>unet|text_encoder|text_encoder_2)\.)?"
_LAYER = r"(?P<layer>[\w.]+?)"
_ADAPTER = r"(?:\.\w+)?"  # PEFT's name of the adapter, in the state dict of a model that it wraps

_PROJECTION = r"(?:\.processor)?\.(?P<projection>to_q|to_k|to_v|to_out)_lora"

# the rest is mostly flattened, but some files keep the dots
_KOHYA_MODEL = r"(?:(?:lora|lycoris)_(?P<model>unet|te|te1|te2)[_.]|lycoris_)"
_ORIGINAL = r"(?P<layer>(?:(?:input|middle|output)_blocks?|time_embed|label_emb|out)\.[\w.]+?)"  # OneTrainer's
_FLAT = r"(?P<layer>\w+)"
_COMFY_MODEL = r"(?P<model>diffusion_model|text_encoders\.clip_[lgh]\.transformer)\."
_HALF = rf"(?P<role>lora_down|lora_up|lora_A|lora_B){_ADAPTER}\.weight"
_ALPHA = r"(?P<role>alpha)"
_METHOD = (
    r"(?P<role>lora_mid|hada_[wt][12](?:_[ab])?|lokr_w[12](?:_[ab])?|lokr_t2|diff_b|diff|w_norm|b_norm|dora_scale|"
    rf"lora_magnitude_vector|ia3_l|oft_blocks|rescale){_ADAPTER}(?:\.weight)?"
)
_BIAS = rf"(?P<role>lora_up|lora_B){_ADAPTER}\.bias"

KOHYA, COMFY, DIFFUSERS = "kohya", "ComfyUI", "diffusers"
_TENSORS = (_HALF, _ALPHA, _METHOD, _BIAS)
_PATTERNS = {
    KOHYA: [
        *(rf"{_KOHYA_MODEL}{_LAYER}\.{tensor}" for tensor in _TENSORS),
        rf"{_KOHYA_MODEL}{_FLAT}\.(?P<role>weight|on_input)",  # LyCORIS' IA3
        # diffusers' --output_kohya_format on its old names
        rf"{_KOHYA_MODEL}{_FLAT}_processor_(?P<projection>to_q|to_k|to_v|to_out)_lora\.(?P<role>down|up)\.weight",
        rf"{_KOHYA_MODEL}{_FLAT}[._]lora(?:_linear_layer)?\.(?P<role>down|up)\.weight",
    ],
    COMFY: [
        *(rf"{_COMFY_MODEL}{_LAYER}\.{tensor}" for tensor in _TENSORS),
        *(rf"{_ORIGINAL}\.{tensor}" for tensor in _TENSORS),
    ],
    "PEFT": [rf"base_model\.model\.{_MODEL}{_LAYER}\.{tensor}" for tensor in _TENSORS],
    DIFFUSERS: [rf"{_MODEL}{_LAYER}\.{tensor}" for tensor in (_HALF, _METHOD, _BIAS)],
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

_ROLES: Mapping[str, Role] = {  # others are their own names
    "lora_down": "down",
    "lora_up": "up",
    "lora_A": "down",
    "lora_B": "up",
    "down": "down",
    "up": "up",
    "lora_magnitude_vector": "magnitude",
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

# unsupported methods; the first pattern that matches gives the name
_OTHER_METHODS = {
    "OFT of another form": r"\.b?oft_",
    "GLoRA": r"\.[ab][12]\.weight$",
    "a LoRA of token embeddings": r"\.lora_embedding_[AB]",
    "whole modules beside its LoRA (PEFT's modules_to_save)": r"\.modules_to_save\.",
    "the base's own biases beside its LoRA (PEFT's bias='lora_only' or 'all')": r"^base_model\..*\.bias$",
    "AnimateDiff's motion layers": r"motion_modules|temporal_transformer",
}

_NO_WEIGHTS = re.compile(r"(.*\.)?(__\w+|scale_weight|global_step|epoch|scaled_fp8|iterations)")
"""Numbers of real files that are no weights of a layer: PEFT's and kohya's counters, a base's fp8 marks."""


@dataclass(frozen=True)
class Part:
    """The meaning of a key. ``model`` is unet, text_encoder or text_encoder_2; ``layer`` is a path inside it."""

    model: str
    layer: str
    role: Role
    style: str


def other_method(key: str) -> str | None:
    """The name of the unsupported method to which a key belongs. None if there is none."""
    return next((name for name, pattern in _OTHER_METHODS.items() if re.search(pattern, key)), None)


def is_no_weight(key: str) -> bool:
    """Whether a key holds a number that its trainer stored and that changes no layer."""
    return _NO_WEIGHTS.fullmatch(key) is not None


def is_embedding(keys: Sequence[str]) -> bool:
    """Whether a file holds a textual inversion.

    A1111 and kohya use the key ``emb_params``, or for SDXL ``clip_l`` and ``clip_g``. Diffusers uses the word as key.
    """
    return (len(keys) == 1 and "." not in keys[0]) or (bool(keys) and set(keys) <= {"clip_l", "clip_g"})


def parts(keys: Iterable[str]) -> dict[str, Part | None]:
    """Parse the keys of a file. None for a key of no known style."""
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
    model = named.get("model") or (TEXT_ENCODERS[0] if layer.startswith((*TEXT_ROOTS, "encoder.layers.")) else UNET)
    model = _MODELS.get(model, model)
    if style in _LIKE_CHECKPOINTS:
        layer = from_sgm(flatten(layer), layers_per_block) if model == UNET else unflatten(flatten(layer))
    if projection := named.get("projection"):
        layer += "." + (_PROJECTIONS if model == UNET else _TEXT_PROJECTIONS)[projection]
    if model in TEXT_ENCODERS and layer.startswith("encoder."):
        layer = f"text_model.{layer}"  # transformers 5 has no such part of the path any more
    # as tara's own files are; each family has its own layers
    prefixed = style == DIFFUSERS and named["model"] == UNET
    if not prefixed and not layer.startswith(ROOTS if model == UNET else TEXT_ROOTS):
        return None
    role = _ROLES.get(match["role"], match["role"])
    return Part(model, layer, "lora_bias" if key.endswith(".bias") else role, style)
