"""Hostile and odd files: each gets its sentence, and nothing of a file is dropped silently."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import foreign_files as files
import tiny_adapters
import tiny_bases
from tara.adapters.adapter import load_adapter
from tara.errors import TaraError
from tara.families.base import Base
from tara.inference.active_adapter import ActiveAdapter
from tara.inference.fitting import check_fits

Tensors = dict[str, Tensor]
K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
PATH = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def _without(suffix: str) -> Callable[[Tensors], Tensors]:
    return lambda good: {key: tensor for key, tensor in good.items() if key != K + suffix}


def _with(key: str, tensor: Tensor) -> Callable[[Tensors], Tensors]:
    return lambda good: good | {key: tensor}


def _changed(suffix: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda good: good | {K + suffix: change(good[K + suffix])}


def _only_ups_of_half(good: Tensors) -> Tensors:
    ups = [key for key in good if key.endswith("lora_up.weight")]
    return {key: tensor for key, tensor in good.items() if key not in ups[len(ups) // 2 :]}


def _of_rank_zero(good: Tensors) -> Tensors:
    return good | {f"{K}.lora_down.weight": torch.ones(0, 32), f"{K}.lora_up.weight": torch.ones(16, 0)}


X = torch.ones(2, 2)
REFUSED: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "missing up": (_without(".lora_up.weight"), rf"layer '{PATH}' has no up matrix"),
    "missing down": (_without(".lora_down.weight"), rf"layer '{PATH}' has no down matrix"),
    "up for half the layers": (_only_ups_of_half, "has no up matrix"),
    "alpha alone": (_with("lora_unet_conv_in.alpha", torch.tensor(1.0)), "layer 'conv_in' has no down matrix"),
    "wrong shape": (_changed(".lora_up.weight", lambda up: up[:, :-1]), "32 x 3|16 x 3.*not match"),
    "three dimensions": (_changed(".lora_down.weight", lambda down: down[None]), "do not match"),
    "a kernel above": (_changed(".lora_up.weight", lambda up: up[..., None, None].expand(-1, -1, 3, 3)), "not match"),
    "zero rank": (_of_rank_zero, "has rank 0"),
    "NaN": (_changed(".lora_up.weight", lambda up: up / 0 * 0), "holds NaN or infinite weights"),
    "infinity": (_changed(".lora_down.weight", lambda down: down / 0), "holds NaN or infinite weights"),
    "whole numbers": (_changed(".lora_up.weight", lambda up: up.to(torch.int8)), "stored as .*torch.int8"),
    "alpha is NaN": (_with(f"{K}.alpha", torch.tensor(float("nan"))), "has an alpha that is not a number"),
    "alpha is a list": (_with(f"{K}.alpha", torch.ones(3)), "has an alpha that is not a number"),
    "a layer twice": (_with(f"unet.{PATH}.lora_A.weight", X), rf"has the layer '{PATH}' twice"),
    "two alphas": (_with(f"unet.{PATH}.alpha", torch.tensor(2.0)), rf"twice, as '{K}\.alpha' and as"),
    "half a LoHa": (_with(f"{K}.hada_w1_a", X), "has matrices that do not belong together"),
    "half a LoKr": (_with(f"{K}.lokr_w2_a", X), "has matrices that do not belong together"),
    "a huge LoHa": (lambda _: {f"{K}.hada_w{n}_{h}": torch.ones(*((9999, 1) if h == "a" else (1, 9999)))
                               for n in "12" for h in "ab"}, "a matrix of 9999 x 9999, which no layer is"),
    "NaN in a difference": (_with(f"{K}.diff", X / 0), "holds NaN or infinite weights"),
    "OFT of another form": (_with(f"{K}.oft_diag", X), "contains OFT of another form"),
    "PEFT's modules_to_save": (_with("base_model.model.conv_in.modules_to_save.weight", X), "modules_to_save"),
    "PEFT's biases": (_with("base_model.model.conv_in.base_layer.bias", X), "the base's own biases beside its LoRA"),
    "embedding of no vectors": (lambda _: {"emb_params": torch.ones(0, 32)}, "is a textual inversion, not a LoRA"),
    "embedding of a picture": (lambda _: {"<xlo>": torch.ones(1, 3, 8, 8)}, "is a textual inversion, not a LoRA"),
    "embeddings of SDXL's two encoders": (lambda _: {"clip_l": X, "clip_g": X[:1]}, "is a textual inversion"),
    "a damaged embedding": (_with("bundle_emb.xlo.string_to_param.*", X[0]), "has a damaged embedding of 'xlo'"),
    "unknown key": (_with("lora_unet_of_mine.lora_down.weight", X), "key 'lora_unet_of_mine.lora_down.weight', which"),
    "another suffix": (_with(f"{K}.lora_middle.weight", X), "which tara does not know"),
    "a checkpoint": (lambda _: {"model.diffusion_model.input_blocks.0.0.weight": X}, "does not know"),
    "a U-Net without LoRA": (lambda _: {"conv_in.weight": X, "conv_in.bias": X}, "contains no LoRA weights"),
    "a U-Net and more": (lambda good: good | {"conv_in.weight": X, "logit_scale": X[0]}, "key 'logit_scale', which"),
    "no tensors": (lambda _: {}, "contains no LoRA weights"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_strange_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    change, sentence = REFUSED[name]
    unet = tiny_bases.sd_pipeline().unet
    good = files.kohya(files.random_deltas(unet, r"down_blocks\.0.*attn2"))
    path = files.saved(tmp_path / "odd.safetensors", change(good))
    with pytest.raises(TaraError, match=sentence) as refusal:
        load_adapter(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


DIT = "transformer.transformer_blocks.0.attn1.to_q"
FOREIGN = {
    "FLUX": ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", {}),
    "FLUX of kohya": ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", {}),
    "FLUX by its header": (f"{K}.lora_down.weight", {"modelspec.architecture": "flux-1-dev/lora"}),
    "Stable Diffusion 3": ("transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight", {}),
    "Stable Diffusion 3 of kohya": ("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight", {}),
    "Qwen-Image": ("transformer_blocks.0.img_mod.1.lora_A.weight", {}),
    "HunyuanVideo": ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", {"ss_base_model_version": "hunyuan"}),
    "Wan": ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", {}),
    "Z-Image": ("diffusion_model.layers.0.attention.to_q.lora_A.weight", {}),
    "Stable Cascade": ("lora_prior_unet_down_blocks_0_1_attention_to_q.lora_down.weight", {}),
    "AnimateDiff": ("unet.down_blocks.0.motion_modules.0.proj_in.lora_A.weight", {}),
    "PixArt": ("transformer.adaln_single.linear.lora_A.weight", {}),
    "PixArt by its header": (f"{DIT}.lora_A.weight", {"modelspec.architecture": "pixart-sigma/lora"}),
    "Sana": ("transformer.transformer_blocks.0.ff.conv_inverted.lora_A.weight", {}),
    "Sana by its header": (f"{DIT}.lora_A.weight", {"modelspec.architecture": "sana-1600m/lora"}),
    "LTX-Video": ("diffusion_model.patchify_proj.lora_A.weight", {}),
    "LTX-Video by its header": (f"{DIT}.lora_A.weight", {"modelspec.architecture": "ltx-video/lora"}),
    "a diffusion transformer (PixArt, Sana or LTX-Video)": (f"{DIT}.lora_A.weight", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_for_another_family_is_named_by_it(name: str, tmp_path: Path) -> None:
    key, header = FOREIGN[name]
    path = files.saved(tmp_path / "a.safetensors", {key: X}, header)
    with pytest.raises(TaraError) as refusal:
        load_adapter(path)
    assert f"is an adapter for {name.partition(' of ')[0].partition(' by ')[0]}, but tara" in str(refusal.value)


def test_a_huge_header_is_refused_unread(tmp_path: Path) -> None:
    size = 17 * 2**20
    (tmp_path / "huge.safetensors").write_bytes(size.to_bytes(8, "little") + b"{" * size)
    with pytest.raises(TaraError, match="header of 17 MiB"):
        load_adapter(tmp_path / "huge.safetensors")


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt"])
def test_a_pickle_is_refused_unread(suffix: str, tmp_path: Path) -> None:
    pickle = tmp_path / f"pytorch_lora_weights{suffix}"
    pickle.write_bytes(b"never opened")
    for path in (pickle, tmp_path):
        with pytest.raises(TaraError, match=rf"{suffix}' is a pickle"):
            load_adapter(path)


def test_a_folder_without_a_known_file_says_what_it_looks_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(TaraError, match=r"adapter_model\.safetensors or"):
        load_adapter(tmp_path)


def test_a_second_file_for_the_text_encoder_is_not_dropped_silently(tmp_path: Path) -> None:
    pipe = tiny_bases.sd_pipeline()
    deltas = files.random_deltas(pipe.unet, files.ATTENTIONS)
    files.saved(tmp_path / "unet" / "adapter_model.safetensors", files.peft(deltas))
    text = files.saved(tmp_path / "text_encoder" / "model.safetensors", pipe.text_encoder.state_dict())
    assert load_adapter(tmp_path).layers.keys() == deltas.keys()  # a whole pipeline's folder may hold plain encoders
    files.saved(text, files.peft(files.random_deltas(pipe.text_encoder, r"q_proj$")))
    with pytest.raises(TaraError, match=r"has LoRA layers of a text encoder.*Give '.+/unet'"):
        load_adapter(tmp_path)
    assert load_adapter(tmp_path / "unet").layers.keys() == deltas.keys()


PEFT_CONFIGS = {
    "DoRA": ({"use_dora": True}, "is DoRA by its config and holds no magnitudes"),
    "another method": ({"peft_type": "VERA"}, "is a VERA adapter of PEFT"),
    "changed base": ({"init_lora_weights": "pissa_niter_4"}, "which also changed the base"),
    "no object": ([1], "not a JSON object"),
    "a word for a rank": ({"r": "many"}, "damaged LoRA config"),
    "a list for a pattern": ({"alpha_pattern": ["to_k"]}, "damaged LoRA config"),
    "an expression that is none": ({"alpha_pattern": {"(": 3}}, "damaged LoRA config"),
    "an expression without an end": ({"alpha_pattern": {"((a{99}){99}){99}": 3}}, "too complex"),
    "another rank": ({"r": 9}, "has rank 4, but its config says 9"),
    "an infinite alpha": ({"lora_alpha": float("inf")}, "alpha that is not a number"),
    "a layer that is not there": ({"target_modules": [PATH, "mid_block.attentions.0.proj_in"]}, "1 are missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", PEFT_CONFIGS)
@pytest.mark.parametrize("place", ["folder", "header"])
def test_a_strange_peft_config_is_refused_by_name(name: str, place: str, tmp_path: Path) -> None:
    config, sentence = PEFT_CONFIGS[name]
    deltas = files.random_deltas(tiny_bases.sd_pipeline().unet, r"down_blocks\.0.*attn2")
    if place == "folder":
        files.saved(tmp_path / "adapter_model.safetensors", files.peft(deltas))
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        path = tmp_path
    else:
        header = {"lora_adapter_metadata": json.dumps(config)}
        path = files.saved(tmp_path / "a.safetensors", files.diffusers(deltas, prefix=""), header)
    with pytest.raises(TaraError, match=sentence):
        load_adapter(path)


def test_half_of_our_own_layers_are_not_taken_for_an_adapter(sd_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    path = tiny_adapters.random_adapter(Base(sd_pipe)).save(tmp_path / "rex.safetensors")
    with safetensors.safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = sorted(safetensors.torch.load_file(path).items())
    files.saved(path, dict(tensors[: len(tensors) // 2]), header)
    with pytest.raises(TaraError, match=r"names \d+ layers, but \d+ are missing"):
        load_adapter(path)


def test_an_adapter_of_another_family_or_shape_is_refused_by_name(tmp_path: Path) -> None:
    sdxl = Base(tiny_bases.sdxl_pipeline())
    deltas = files.random_deltas(tiny_bases.sd_pipeline().unet, files.ATTENTIONS)
    active = ActiveAdapter(load_adapter(files.saved(tmp_path / "a.safetensors", files.kohya(deltas))))
    with pytest.raises(TaraError, match=r"changes a layer '.+' of \d+ x \d+, which this base does"):
        check_fits(sdxl, active)
    wide = {PATH: files.Delta(torch.ones(2, 768), torch.ones(5, 2), 2.0)}
    active = ActiveAdapter(load_adapter(files.saved(tmp_path / "b.safetensors", files.kohya(wide))))
    with pytest.raises(TaraError, match="family 'sd1', but this base is 'sdxl-64'"):
        check_fits(sdxl, active)


def test_text_encoder_deltas_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    sd, sdxl = tiny_bases.sd_pipeline(), tiny_bases.sdxl_pipeline()
    active = ActiveAdapter(load_adapter(files.saved(tmp_path / "te.safetensors", files.kohya_text(sd))))
    check_fits(Base(sd), active)
    with pytest.raises(TaraError, match=r"changes a layer 'text_encoder\.text_model\..+' of 32 x"):
        check_fits(Base(sdxl), active)
    second = files.saved(tmp_path / "te2.safetensors", files.kohya_text(sdxl, "text_encoder_2", "lora_te2_"))
    with pytest.raises(TaraError, match=r"changes a layer 'text_encoder_2\.text_model\."):
        check_fits(Base(sd), ActiveAdapter(load_adapter(second)))
