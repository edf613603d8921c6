"""Converts layer names: diffusers' paths, flattened paths (underscores for dots), and the sgm U-Net's block names."""

import re
from collections.abc import Iterable
from functools import cache

ROOTS = (
    *("down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out"),
    *("time_embedding", "add_embedding", "conv_norm_out"),
)
"""What the path of a layer of a diffusers U-Net begins with."""

TEXT_ROOTS = ("text_model", "text_projection")
"""What the path of a layer of a CLIP text encoder begins with."""

# names that contain an underscore; every other underscore in a flattened path stands for a dot
_COMPOUND = (
    *ROOTS,
    *TEXT_ROOTS,
    *("transformer_blocks", "to_q", "to_k", "to_v", "to_out", "proj_in", "proj_out"),
    *("time_emb_proj", "conv_shortcut", "linear_1", "linear_2"),
    *("self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "layer_norm1", "layer_norm2", "final_layer_norm"),
)
_NAME = re.compile(rf"(?:{'|'.join(_COMPOUND)})(?=_|$)|[^_]+")

RELEASED_LAYERS_PER_BLOCK = 2
"""Resnets of a down block in every released U-Net of SD 1.x, 2.x and SDXL."""

_SGM_NAMES = {
    "input_blocks_0_0": "conv_in",
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding.linear_1",
    "time_embed_2": "time_embedding.linear_2",
    "label_emb_0_0": "add_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
    "middle_block_0": "mid_block.resnets.0",
    "middle_block_1": "mid_block.attentions.0",
    "middle_block_2": "mid_block.resnets.1",
    # inside a resnet
    "in_layers_0": "norm1",
    "out_layers_0": "norm2",
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
MOST_BLOCKS = 8  # on each side; released U-Nets have three or four

_SGM = re.compile(r"(input_blocks_\d+_\d+|output_blocks_\d+_\d+|middle_block_\d)_(\w+)")
_DIFFUSERS = re.compile(r"((?:down_blocks|up_blocks)\.\d+\.\w+\.\d+|mid_block\.\w+\.\d+)\.(.+)")


@cache
def _from_sgm(layers_per_block: int) -> dict[str, str]:
    """From names of the sgm U-Net's blocks and single layers to diffusers' names."""
    names = dict(_SGM_NAMES)
    for block in range(MOST_BLOCKS):
        first = block * (layers_per_block + 1)
        for place in range(layers_per_block + 1):
            for number, kind in enumerate(("resnets", "attentions")):
                names[f"output_blocks_{first + place}_{number}"] = f"up_blocks.{block}.{kind}.{place}"
                if place < layers_per_block:
                    names[f"input_blocks_{first + place + 1}_{number}"] = f"down_blocks.{block}.{kind}.{place}"
        names[f"input_blocks_{first + layers_per_block + 1}_0_op"] = f"down_blocks.{block}.downsamplers.0.conv"
        for number in (1, 2):  # behind a resnet and, in all of SDXL's, an attention: the last name is the one written
            names[f"output_blocks_{first + layers_per_block}_{number}_conv"] = f"up_blocks.{block}.upsamplers.0.conv"
    return names


@cache
def _to_sgm(layers_per_block: int) -> dict[str, str]:
    return {path: name for name, path in _from_sgm(layers_per_block).items()}


def flatten(path: str) -> str:
    """``down_blocks.0.attentions.1.proj_in`` to ``down_blocks_0_attentions_1_proj_in``."""
    return path.replace(".", "_")


def unflatten(name: str) -> str:
    """The path of a flattened name, for layers of a U-Net or a CLIP text encoder."""
    return ".".join(_NAME.findall(name))


def sgm_layers_per_block(names: Iterable[str]) -> int:
    """The number of resnets per down block of a U-Net, from its flattened sgm names.

    A down block has resnets and then one downsampler, so their positions exclude some numbers. If several numbers are
    possible, the released models' number is preferred.
    """
    layers: set[int] = set()
    downsamplers: set[int] = set()
    for match in filter(None, map(_SGM.fullmatch, names)):
        block = match[1].split("_")
        if block[0] == "input" and block[2] != "0":
            (downsamplers if match[2] == "op" else layers).add(int(block[2]) - 1)
    for number in (RELEASED_LAYERS_PER_BLOCK, 1, 3, 4):
        period = number + 1
        if all(n % period < number for n in layers) and all(n % period == number for n in downsamplers):
            return number
    return RELEASED_LAYERS_PER_BLOCK


def from_sgm(name: str, layers_per_block: int) -> str:
    """The diffusers path of a flattened sgm name. Also accepts a flattened diffusers path."""
    names, match = _from_sgm(layers_per_block), _SGM.fullmatch(name)
    if name in names or match is None or match[1] not in names:
        return names.get(name) or unflatten(name)
    return f"{names[match[1]]}.{names.get(match[2]) or unflatten(match[2])}"


def to_sgm(path: str, layers_per_block: int) -> str:
    """The flattened sgm name of a diffusers path."""
    names, match = _to_sgm(layers_per_block), _DIFFUSERS.fullmatch(path)
    if path in names or match is None or match[1] not in names:
        return names.get(path) or flatten(path)
    return f"{names[match[1]]}_{names.get(match[2]) or flatten(match[2])}"


def layers_per_block(paths: Iterable[str]) -> int | None:
    """The number of resnets per down block of a U-Net, from its diffusers paths. None if it is not certain.

    An up block has one resnet more. The number is certain if the highest indices in down and up blocks agree.
    """
    counts = {"down_blocks": 0, "up_blocks": 0}
    for side, _, kind, place, *_ in (path.split(".") for path in paths if _DIFFUSERS.fullmatch(path)):
        if side in counts and kind in ("resnets", "attentions"):
            counts[side] = max(counts[side], int(place) + (side == "down_blocks"))
    down, up = counts.values()
    return down if down == up > 0 else None
