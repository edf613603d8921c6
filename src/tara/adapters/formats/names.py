"""Layer names: diffusers' paths, the same with underscores instead of dots, and the blocks of the sgm U-Net."""

import re
from collections.abc import Iterable

ROOTS = (
    *("down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out"),
    *("time_embedding", "add_embedding", "conv_norm_out"),
)
"""What the path of a layer of a diffusers U-Net begins with."""

TEXT_ROOTS = ("text_model", "text_projection")
"""What the path of a layer of a CLIP text encoder begins with."""

# names with an underscore of their own: all the others in a flattened path stand for dots
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

_RESNET = {
    "in_layers_0": "norm1",
    "out_layers_0": "norm2",
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
_SINGLE = {
    "input_blocks_0_0": "conv_in",
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding.linear_1",
    "time_embed_2": "time_embedding.linear_2",
    "label_emb_0_0": "add_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
}
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_RESNET_BACK, _SINGLE_BACK, _MIDDLE_BACK = (
    {new: old for old, new in names.items()} for names in (_RESNET, _SINGLE, _MIDDLE)
)

_SGM = re.compile(r"(?P<side>input|output)_blocks_(?P<block>\d+)_(?P<inner>\d+)_(?P<rest>\w+)")
_SGM_MIDDLE = re.compile(r"middle_block_(?P<inner>[012])_(?P<rest>\w+)")
_BLOCK = re.compile(r"(?P<side>down|up)_blocks\.(?P<block>\d+)\.(?P<kind>\w+)\.(?P<place>\d+)\.(?P<rest>.+)")
_MID = re.compile(r"mid_block\.(?P<place>\w+\.\d+)\.(?P<rest>.+)")


def flatten(path: str) -> str:
    """``down_blocks.0.attentions.1.proj_in`` to ``down_blocks_0_attentions_1_proj_in``."""
    return path.replace(".", "_")


def unflatten(name: str) -> str:
    """The path behind a flattened one, of a U-Net or a CLIP text encoder."""
    return ".".join(_NAME.findall(name))


def sgm_layers_per_block(names: Iterable[str]) -> int:
    """Resnets per down block of the U-Net that flattened sgm names are from, as far as they tell.

    A down block is its resnets and then one downsampler, so the places of both rule numbers out; where several are
    left, it is the released models'.
    """
    layers: set[int] = set()
    downsamplers: set[int] = set()
    for match in filter(None, map(_SGM.fullmatch, names)):
        if match["side"] == "input" and int(match["block"]) > 0:
            (downsamplers if match["rest"] == "op" else layers).add(int(match["block"]) - 1)
    for number in (RELEASED_LAYERS_PER_BLOCK, 1, 3, 4):
        period = number + 1
        if all(n % period < number for n in layers) and all(n % period == number for n in downsamplers):
            return number
    return RELEASED_LAYERS_PER_BLOCK


def from_sgm(name: str, layers_per_block: int) -> str:
    """The diffusers path of a flattened name, which may also be a flattened diffusers path already."""
    if name in _SINGLE:
        return _SINGLE[name]
    if match := _SGM_MIDDLE.fullmatch(name):
        return f"mid_block.{_MIDDLE[match['inner']]}.{_rest(match['rest'])}"
    match = _SGM.fullmatch(name)
    if match is None:
        return unflatten(name)
    down, number, inner, rest = match["side"] == "input", int(match["block"]), int(match["inner"]), match["rest"]
    block, place = divmod(number - 1 if down else number, layers_per_block + 1)
    side = "down" if down else "up"
    if rest in ("op", "conv"):
        return f"{side}_blocks.{block}.{side}samplers.0.conv"
    return f"{side}_blocks.{block}.{'attentions' if inner else 'resnets'}.{place}.{_rest(rest)}"


def to_sgm(path: str, layers_per_block: int) -> str:
    """The flattened sgm name of a diffusers path."""
    if path in _SINGLE_BACK:
        return _SINGLE_BACK[path]
    if match := _MID.fullmatch(path):
        return f"middle_block_{_MIDDLE_BACK[match['place']]}_{_RESNET_BACK.get(match['rest'], flatten(match['rest']))}"
    match = _BLOCK.fullmatch(path)
    if match is None:
        return flatten(path)
    side, kind, rest = match["side"], match["kind"], match["rest"]
    first = int(match["block"]) * (layers_per_block + 1) + (side == "down")
    if kind == "downsamplers":
        return f"input_blocks_{first + layers_per_block}_0_op"
    if kind == "upsamplers":
        # behind a resnet and an attention: all of SDXL's blocks that enlarge have attention
        return f"output_blocks_{first + layers_per_block}_2_conv"
    inner = 1 if kind == "attentions" else 0
    name = f"{first + int(match['place'])}_{inner}_{_RESNET_BACK.get(rest, flatten(rest))}"
    return f"{'input' if side == 'down' else 'output'}_blocks_{name}"


def layers_per_block(paths: Iterable[str]) -> int | None:
    """Resnets per down block of the U-Net that diffusers paths are from; None where the paths do not tell.

    An up block has one more, so the last places of both sides agree where all blocks with attention are there.
    """
    counts: dict[str, int] = {}
    for match in filter(None, map(_BLOCK.fullmatch, paths)):
        if match["kind"] in ("resnets", "attentions"):
            counts[match["side"]] = max(counts.get(match["side"], 0), int(match["place"]) + (match["side"] == "down"))
    return counts["down"] if len(counts) == 2 and len(set(counts.values())) == 1 else None


def _rest(name: str) -> str:
    return _RESNET.get(name) or unflatten(name)
