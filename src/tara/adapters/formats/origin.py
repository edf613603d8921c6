"""Determines the origin of another tool's file: its base family, the program that wrote it, and its training."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

from tara.families.registry import FAMILIES, family_of_widths
from tara.families.text import TEXT_ENCODERS

MOST_TAGS = 5
_DOT = r"[._]"
_START = r"^(?:transformer\.|base_model\.model\.|diffusion_model\.|model\.|lora_unet_|lora_transformer_|lycoris_)*"
_OTHER_FAMILIES = {
    "Qwen-Image": (r"qwen", rf"transformer_blocks{_DOT}\d+{_DOT}(?:img|txt)_(?:mod|mlp)"),
    "HunyuanVideo": (r"hunyuan", r"token_refiner"),
    "FLUX": (r"flux", r"single_transformer_blocks|double_blocks|single_blocks"),
    "Stable Diffusion 3": (
        r"stable-diffusion-3|sd3",
        rf"joint_blocks|transformer_blocks{_DOT}\d+{_DOT}attn{_DOT}(?:add_[qkv]_proj|to_add_out|to_[qkv])",
    ),
    "Wan": (r"\bwan", rf"(?:^|{_DOT})blocks{_DOT}\d+{_DOT}(?:self_attn|cross_attn|ffn){_DOT}"),
    "Z-Image": (r"z-?image", rf"(?:noise|context)_refiner|(?:^|{_DOT})layers{_DOT}\d+{_DOT}attention{_DOT}"),
    "Stable Cascade": (r"cascade", r"^lora_prior_|\bprior\.|effnet"),
    "AnimateDiff": (r"animatediff", r"motion_modules|temporal_transformer"),
    "LTX-Video": (r"ltx", r"patchify_proj"),  # before PixArt: it has an adaln_single, too
    "PixArt": (r"pixart", r"adaln_single"),
    "Sana": (r"sana", r"conv_inverted"),
    "a diffusion transformer (PixArt, Sana or LTX-Video)": (
        r"(?!)",
        rf"{_START}transformer_blocks{_DOT}\d+{_DOT}attn[12]{_DOT}",
    ),
}
"""Families that tara cannot use: how headers name them, and what only their layers are called."""

_SAME_NAMES = {
    "sd1": r"stable-diffusion-v1|sd_v1|sd1|sd_1",
    "sd2": r"stable-diffusion-v2|sd_v2|sd2|sd_2",
    "sdxl": r"xl",
}
_FIRST_WIDTH, _LAST_WIDTH = 320, 1280  # of SD 1.x, 2.x and SDXL
_SECOND_ENCODER = 1280  # of SDXL


def other_family(keys: Iterable[str], header: Mapping[str, str]) -> str:
    """The name of an unsupported family, from a file's header or layer names. Empty if none is recognised."""
    named = _named_base(header).casefold()
    for family, (in_header, _) in _OTHER_FAMILIES.items():
        if re.search(in_header, named):
            return family
    text = "\n".join(keys)
    return next((family for family, (_, layer) in _OTHER_FAMILIES.items() if re.search(layer, text, re.MULTILINE)), "")


def family_of_file(
    widths: Mapping[str, int], text_kv_paths: tuple[str, ...], header: Mapping[str, str], convolved: bool
) -> str:
    """The family of bases that a file fits, from the text's width, its header and its layers. Empty if unknown.

    Args:
        widths: input widths by path. Paths in a text encoder begin with its name.
        text_kv_paths: endings of the layers whose input is the text.
        header: the file's header.
        convolved: whether ``proj_in`` layers are convolutions, as in SD 1.x.
    """
    if text := {layer: width for layer, width in widths.items() if layer.endswith(text_kv_paths)}:
        return family_of_widths(text)
    named = _named_base(header).casefold()
    if family := next((family.name for family in FAMILIES if re.search(_SAME_NAMES[family.name], named)), ""):
        return family
    # a model's width is that of its attention; SDXL's first encoder is also SD 1.x's
    encoders = {path.partition(".")[0]: width for path, width in widths.items() if path.endswith(("q_proj", "k_proj"))}
    if encoders.get(TEXT_ENCODERS[1]) == _SECOND_ENCODER:
        return "sdxl"
    if all(path.startswith(TEXT_ENCODERS) for path in widths):
        return family_of_widths({"": encoders[TEXT_ENCODERS[0]]}) if list(encoders) == [TEXT_ENCODERS[0]] else ""
    return _by_blocks(widths, convolved)


def _by_blocks(widths: Mapping[str, int], convolved: bool) -> str:
    blocks = {layer.partition(".attentions.")[0]: width for layer, width in widths.items() if ".attn1.to_" in layer}
    if blocks.get("up_blocks.0") == _LAST_WIDTH and "down_blocks.0" not in blocks:
        return "sdxl"
    if blocks.get("down_blocks.0") == _FIRST_WIDTH:
        proj_in = [layer for layer in widths if layer.endswith("proj_in")]
        return ("sd1" if convolved else "sd2") if proj_in else ""
    return ""


def _named_base(header: Mapping[str, str]) -> str:
    return header.get("modelspec.architecture") or header.get("ss_base_model_version") or ""


def program(header: Mapping[str, str], style: str) -> str:
    """The program that wrote a file, from its header, else from the style of its keys."""
    if "ai-toolkit" in header.get("software", ""):
        return f"ai-toolkit {_object(header['software']).get('version', '')}".strip()
    if any(key.startswith("ot_") for key in header):
        return "OneTrainer"
    if "lycoris" in header.get("ss_network_module", ""):
        return "LyCORIS in kohya sd-scripts"
    if "ss_sd_scripts_commit_hash" in header or "ss_network_module" in header:
        return "kohya sd-scripts"
    return {"lora_adapter_metadata": "diffusers"}.get(next(iter(header.keys() & {"lora_adapter_metadata"}), ""), style)


def trigger_words(header: Mapping[str, str]) -> dict[str, str]:
    """Possible trigger words by the header entry that contains them, the most common tags first."""
    counts: dict[str, int] = {}
    for folder in _object(header.get("ss_tag_frequency", "")).values():
        for tag, count in cast(dict[str, Any], folder if isinstance(folder, dict) else {}).items():
            counts[tag.strip()] = counts.get(tag.strip(), 0) + (count if isinstance(count, int) else 0)
    tags = sorted(counts, key=lambda tag: (-counts[tag], tag))[:MOST_TAGS]
    words_by_entry = {
        "modelspec.trigger_phrase": header.get("modelspec.trigger_phrase", ""),
        "ss_tag_frequency": ", ".join(tags),
        "ss_output_name": header.get("ss_output_name", ""),
        "trigger_word": header.get("trigger_word", ""),
        "name": header.get("name", ""),
    }
    return {source: words for source, words in words_by_entry.items() if words}


def training(header: Mapping[str, str]) -> dict[str, str]:
    """Resolution, steps and epochs, as far as the header has them."""
    facts = {
        "resolution": header.get("ss_resolution") or header.get("modelspec.resolution", ""),
        "steps": header.get("ss_steps") or str(_object(header.get("training_info", "")).get("step", "")),
        "epochs": header.get("ss_epoch") or str(_object(header.get("training_info", "")).get("epoch", "")),
        "base": header.get("ss_sd_model_name", ""),
    }
    return {name: value for name, value in facts.items() if value and value != "None"}


def _object(text: str) -> dict[str, Any]:
    try:
        entries: Any = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return cast(dict[str, Any], entries) if isinstance(entries, dict) else {}
