"""Files of other tools, built without tara's writer, against stock diffusers, PEFT and a formula in float64."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

import foreign_files as files
import tiny_bases
from tara.adapters.adapter import Adapter, load_adapter
from tara.core.lora import LowRank
from tara.errors import TaraError, TaraWarning
from tara.families.base import Base
from tara.inference.active_adapter import ActiveAdapter, parse_adapter
from tara.inference.binding import bind, bind_all_tokens
from tara.inference.fitting import check_fits
from tara.inference.fusing import fused, global_part
from tara.inference.text_kv import CachedTextEncoder, compute_text_kv

PROMPT = "a xlo dog on the beach"
WORD = (2, 3)  # the tokens of xlo in it, behind the start and `a`
CLOSE = 1e-5


def _inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(1, 4, 16, 16, generator=generator), torch.tensor([400])


@torch.no_grad()
def _stock(pipe: Any) -> Tensor:
    """What the pipeline's U-Net predicts as it is."""
    base = Base(pipe)
    return base.predict(*_inputs(), base.encode([PROMPT]))


@torch.no_grad()
def _composed(pipe: Any, active: ActiveAdapter, everywhere: bool = True) -> Tensor:
    """What it predicts with an adapter as a plain LoRA (``everywhere``), or with its text part on the word's tokens."""
    base = Base(pipe)
    check_fits(base, active)
    encoding = base.encode([PROMPT])
    bound = (bind_all_tokens if everywhere else bind)(encoding.tokenized[0], [active])
    with fused(base, global_part([active])):
        conditioning = compute_text_kv(CachedTextEncoder(base), encoding, [bound])
        base.processors.install()
        try:
            return base.predict(*_inputs(), encoding, conditioning)
        finally:
            base.processors.release()


def _error(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def _varied(pipe: Any, layers: str) -> dict[str, files.Delta]:
    return files.random_deltas(pipe.unet, layers, ranks=(4, 2, 3), alphas=(1.0, 4.0, 2.5, 0.3))


def _unscaled(pipe: Any, layers: str) -> dict[str, files.Delta]:
    """Alpha = rank, for styles that do not tell an alpha."""
    return files.random_deltas(pipe.unet, layers, ranks=(4, 2), alphas=(4.0, 2.0))


def _one_alpha(pipe: Any, layers: str) -> dict[str, files.Delta]:
    """Diffusers 0.42 loses the alphas of a kohya file's attention layers where they differ from the commonest one."""
    return files.random_deltas(pipe.unet, layers, ranks=(4, 2, 3), alphas=(1.0,))


STOCK_READS: dict[str, tuple[str, Callable[[Any], dict[str, Tensor]]]] = {
    "diffusers": ("sd", lambda pipe: files.diffusers(_unscaled(pipe, files.TRANSFORMERS))),
    "diffusers-xl": ("sdxl", lambda pipe: files.diffusers(_unscaled(pipe, files.TRANSFORMERS))),
    "old-diffusers": ("sdxl", lambda pipe: files.old_diffusers(_unscaled(pipe, files.ATTENTIONS))),
    "processors": ("sd", lambda pipe: files.attention_processors(_unscaled(pipe, files.ATTENTIONS))),
    "kohya": ("sd", lambda pipe: files.kohya(_one_alpha(pipe, files.TRANSFORMERS))),
    "kohya-locon": ("sd", lambda pipe: files.kohya(_one_alpha(pipe, f"{files.TRANSFORMERS}|{files.CONVOLUTIONS}"))),
    "kohya-sgm": ("sdxl", lambda pipe: files.kohya(_one_alpha(pipe, files.TRANSFORMERS), files.TINY_SGM)),
}


@pytest.mark.parametrize("name", STOCK_READS)
def test_a_file_acts_in_tara_as_in_stock_diffusers(name: str, tmp_path: Path) -> None:
    shape, build = STOCK_READS[name]
    pipe = tiny_bases.sd_pipeline() if shape == "sd" else tiny_bases.sdxl_pipeline()
    path = files.saved(tmp_path / "lora.safetensors", build(pipe))
    ours, without = _composed(pipe, ActiveAdapter(load_adapter(path))), _stock(pipe)
    pipe.load_lora_weights(path)
    theirs = _stock(pipe)
    assert _error(ours, theirs) < CLOSE
    assert _error(theirs, without) > 0.01


@pytest.mark.parametrize("metadata", [False, True])
def test_what_diffusers_saves_acts_in_tara_as_there(metadata: bool, tmp_path: Path) -> None:
    pipe = tiny_bases.sd_pipeline()
    config = LoraConfig(
        r=4,
        lora_alpha=6 if metadata else 4,
        target_modules=["to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1"],
        rank_pattern={"attn2.to_k": 3} if metadata else {},
        alpha_pattern={"attn2.to_v": 1.5, r"up_blocks.*to_q": 8} if metadata else {},
        use_rslora=metadata,
        init_lora_weights=False,
    )
    without = _stock(pipe)
    torch.manual_seed(0)
    pipe.unet.add_adapter(config)
    theirs = _stock(pipe)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
    told = pipe.unet.peft_config["default"].to_dict() if metadata else None
    if told is not None:
        told["target_modules"] = sorted(told["target_modules"])
    StableDiffusionPipeline.save_lora_weights(tmp_path, layers, unet_lora_adapter_metadata=told)
    pipe.unet.save_lora_adapter(tmp_path / "unet-only")
    pipe.unload_lora_weights()
    assert _error(theirs, without) > 0.01
    assert _error(_composed(pipe, ActiveAdapter(load_adapter(tmp_path))), theirs) < CLOSE
    assert _error(_composed(pipe, ActiveAdapter(load_adapter(tmp_path / "unet-only"))), theirs) < CLOSE


@pytest.mark.parametrize("shape", ["sd", "sdxl"])
@pytest.mark.parametrize("rslora", [False, True])
def test_a_peft_folder_acts_in_tara_as_in_peft(shape: str, rslora: bool, tmp_path: Path) -> None:
    pipe = tiny_bases.sd_pipeline() if shape == "sd" else tiny_bases.sdxl_pipeline()
    config = LoraConfig(
        r=4,
        lora_alpha=2,  # scales near 1: with large ones float32 itself is no longer exact to 1e-5
        target_modules=["to_q", "to_k", "to_v", "to_out.0", "ff.net.2"],
        rank_pattern={"attn2.to_k": 2, r"up_blocks\.0.*to_v": 6},
        alpha_pattern={"attn2.to_k": 3, "to_out.0": 1},
        use_rslora=rslora,
        init_lora_weights=False,
    )
    without, plain = _stock(pipe), copy.deepcopy(pipe.unet)
    torch.manual_seed(0)
    wrapped = get_peft_model(pipe.unet, config)
    theirs = _stock(pipe)
    wrapped.save_pretrained(tmp_path / "rex")
    pipe.unet = plain
    adapter = load_adapter(tmp_path / "rex")
    assert adapter.name == "rex"
    assert _error(theirs, without) > 0.01
    assert _error(_composed(pipe, ActiveAdapter(adapter)), theirs) < CLOSE


@contextmanager
def _masked_linear(attn: nn.Module, deltas: Mapping[str, Tensor]) -> Iterator[None]:
    """Adds each delta to a projection's output at the word's tokens only."""

    def gained(delta: Tensor) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
        mask = torch.zeros(77, 1, dtype=torch.float64)
        mask[list(WORD)] = 1
        return lambda _module, given, out: out + mask * (given[0] @ delta.T)

    hooks = [attn.get_submodule(path).register_forward_hook(gained(delta)) for path, delta in deltas.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _published(pipe: Any, deltas: Mapping[str, files.Delta], weight: float, global_weight: float) -> Tensor:
    """The published composition in float64: cross-attention keys and values by token, everything else everywhere."""
    pipe = copy.copy(pipe)
    unet = copy.deepcopy(pipe.unet).double()
    masked = {
        path: delta.dense() * weight for path, delta in deltas.items() if "attn2.to_k" in path or "attn2.to_v" in path
    }
    with torch.no_grad():
        for path in deltas.keys() - masked.keys():
            unet.get_submodule(path).weight += weight * global_weight * deltas[path].dense()
    encoding = Base(pipe).encode([PROMPT])
    latents, timesteps = _inputs()
    with torch.no_grad(), _masked_linear(unet, masked):
        added: dict[str, Any] = {}
        if encoding.pooled is not None:
            added = {
                "text_embeds": encoding.pooled.double(),
                "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]]).double(),
            }
        return unet(latents.double(), timesteps, encoding.embeddings.double(), added_cond_kwargs=added).sample


def _saved_unet_folder(pipe: Any, deltas: Mapping[str, files.Delta], path: Path) -> Path:
    files.saved(path / "unet" / "diffusion_pytorch_model.safetensors", files.saved_unet(deltas, pipe.unet))
    (path / "unet" / "config.json").write_text(json.dumps(dict(pipe.unet.config), default=str))
    return path


PUBLISHED: dict[str, tuple[str, Callable[[Any, Mapping[str, files.Delta], Path], Path]]] = {
    "saved-unet": ("sd", _saved_unet_folder),
    "saved-unet-itself": ("sd", lambda pipe, deltas, path: _saved_unet_folder(pipe, deltas, path) / "unet"),
    "sdxl-script": ("sdxl", lambda _, deltas, path: files.saved(path / "a.safetensors", files.old_diffusers(deltas))),
    "peft-keys": ("sd", lambda _, deltas, path: files.saved(path / "a.safetensors", files.peft(deltas))),
}


@pytest.mark.parametrize("option", ["", ",alpha=32"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_composes_as_the_formula_in_float64(name: str, option: str, tmp_path: Path) -> None:
    shape, build = PUBLISHED[name]
    pipe = tiny_bases.sd_pipeline() if shape == "sd" else tiny_bases.sdxl_pipeline()
    # some are trained at scale 4, which the files have lost: the published code generates at scale 1
    deltas = files.random_deltas(pipe.unet, files.ATTENTIONS, ranks=(8,), alphas=(32.0 if option else 8.0,))
    path = build(pipe, deltas, tmp_path)
    active = parse_adapter(f"{path}:rare_word=xlo,class_word=dog,weight=0.5,global=0.6{option}")
    assert _error(_composed(pipe, active, everywhere=False), _published(pipe, deltas, 0.5, 0.6)) < CLOSE


def test_only_the_lora_of_a_saved_unet_is_kept(sd_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    deltas = files.random_deltas(sd_pipe.unet, files.ATTENTIONS)
    adapter = load_adapter(_saved_unet_folder(sd_pipe, deltas, tmp_path))
    assert adapter.layers.keys() == deltas.keys()
    assert adapter.card.source == "saved U-Net"


def test_a_lora_acts_on_its_own_words_tokens_and_its_global_part_by_its_weight(tmp_path: Path) -> None:
    pipe = tiny_bases.sd_pipeline()
    deltas = _varied(pipe, files.ATTENTIONS)
    path = files.saved(tmp_path / "pixel.safetensors", files.kohya(deltas))
    for global_weight in (0.0, 0.6):
        active = parse_adapter(f"{path}:rare_word=xlo,class_word=dog,global={global_weight}")
        ours = _composed(pipe, active, everywhere=False)
        assert _error(ours, _published(pipe, deltas, 1.0, global_weight)) < CLOSE


@pytest.mark.parametrize("shape", ["sd", "sdxl"])
def test_every_layer_of_a_kohya_file_has_its_own_rank_and_alpha(shape: str, tmp_path: Path) -> None:
    pipe = tiny_bases.sd_pipeline() if shape == "sd" else tiny_bases.sdxl_pipeline()
    deltas = _varied(pipe, f"{files.TRANSFORMERS}|{files.CONVOLUTIONS}" if shape == "sd" else files.TRANSFORMERS)
    tensors = files.kohya(deltas, files.TINY_SGM if shape == "sdxl" else None)
    active = parse_adapter(f"{files.saved(tmp_path / 'a.safetensors', tensors)}:rare_word=xlo")
    assert _error(_composed(pipe, active, everywhere=False), _published(pipe, deltas, 1.0, 1.0)) < CLOSE


COMFY: dict[str, Callable[[Mapping[str, files.Delta]], dict[str, Tensor]]] = {
    "ComfyUI": lambda deltas: files.comfy(deltas, files.TINY_SGM),
    "ComfyUI with PEFT's halves": lambda deltas: files.comfy(deltas, files.TINY_SGM, "lora_A", "lora_B"),
    "kohya with dots": lambda deltas: {
        key.replace("diffusion_model.", "lora_unet_"): tensor
        for key, tensor in files.comfy(deltas, files.TINY_SGM).items()
    },
}


@pytest.mark.parametrize("name", COMFY)
@pytest.mark.parametrize("shape", ["sd", "sdxl"])
def test_a_dotted_checkpoint_style_composes_as_the_formula_in_float64(name: str, shape: str, tmp_path: Path) -> None:
    pipe = tiny_bases.sd_pipeline() if shape == "sd" else tiny_bases.sdxl_pipeline()
    deltas = _varied(pipe, files.TRANSFORMERS)
    path = files.saved(tmp_path / "lora.safetensors", COMFY[name](deltas))
    active = parse_adapter(f"{path}:rare_word=xlo")
    assert active.adapter.card.source == name.split()[0]
    assert _error(_composed(pipe, active, everywhere=False), _published(pipe, deltas, 1.0, 1.0)) < CLOSE


def test_differences_that_comfyui_extracts_are_left_out_only_where_they_are_zero(tmp_path: Path) -> None:
    pipe = tiny_bases.sd_pipeline()
    deltas = files.random_deltas(pipe.unet, files.ATTENTIONS)
    bias = "diffusion_model.input_blocks.1.1.norm.diff_b"
    tensors = files.comfy(deltas, files.TINY_SGM)
    silent = files.saved(tmp_path / "silent.safetensors", tensors | {bias: torch.zeros(32)})
    assert load_adapter(silent).layers.keys() == deltas.keys()
    loud = files.saved(tmp_path / "loud.safetensors", tensors | {bias: torch.eye(32)[0]})
    changed = load_adapter(loud)
    assert changed.layers.keys() - deltas.keys() == {"down_blocks.0.attentions.0.norm.bias"}
    assert changed.card.method == "full difference"


def test_text_encoders_in_a_comfyui_file_are_those_of_a_kohya_file(tmp_path: Path) -> None:
    pipe = tiny_bases.sdxl_pipeline()
    named: dict[str, Tensor] = {}
    for attribute, clip in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        for path, delta in files.random_deltas(getattr(pipe, attribute), r"self_attn\.\w+$").items():
            name = f"text_encoders.{clip}.transformer.text_model.{path.removeprefix('text_model.')}"
            named[f"{name}.lora_down.weight"], named[f"{name}.lora_up.weight"] = delta.down, delta.up
    adapter = load_adapter(files.saved(tmp_path / "text.safetensors", named))
    assert 2 * len(adapter.text_layers) == len(named)
    check_fits(Base(pipe), ActiveAdapter(adapter))


def test_without_a_card_and_without_a_word_the_error_says_what_to_add(tmp_path: Path) -> None:
    pipe = tiny_bases.sd_pipeline()
    path = files.saved(tmp_path / "pixel.safetensors", files.kohya(_varied(pipe, files.ATTENTIONS)))
    with pytest.raises(TaraError, match=r"pixel\.safetensors:rare_word=xlo,class_word=dog"):
        _composed(pipe, parse_adapter(str(path)), everywhere=False)
    _composed(pipe, parse_adapter(f"{path}:rare_word=xlo"), everywhere=False)  # what it is matters only to namesakes


def test_the_card_of_a_card_less_file_has_what_the_weights_tell(tmp_path: Path) -> None:
    pipe = tiny_bases.sd_pipeline()
    deltas = _varied(pipe, files.TRANSFORMERS)
    adapter = load_adapter(files.saved(tmp_path / "pixel.safetensors", files.kohya(deltas)))
    card = adapter.card
    assert (card.rare_word, card.class_word, card.phrase, card.context) == ("", "", "", "prompt")
    assert (card.source, card.family, card.targets) == ("kohya", "", "everything")
    for path, delta in deltas.items():
        assert card.rank_of(path) == len(delta.down) == adapter.layers[path].rank
        assert card.alpha_of(path) == pytest.approx(delta.alpha, rel=1e-7)
        assert adapter.layers[path].scale == pytest.approx(delta.alpha / len(delta.down), rel=1e-7)


@pytest.mark.parametrize(("width", "family"), [(768, "sd1"), (1024, "sd2"), (2048, "sdxl"), (96, "")])
def test_the_family_is_read_from_the_width_of_the_text(width: int, family: str, tmp_path: Path) -> None:
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    delta = files.Delta(torch.ones(2, width), torch.ones(5, 2), 2.0)
    assert load_adapter(files.saved(tmp_path / "a.safetensors", files.kohya({path: delta}))).card.family == family


SPELLINGS: dict[str, Callable[[str, str], str]] = {
    "LyCORIS' own wrapper": lambda path, half: f"lycoris_{path.replace('.', '_')}.lora_{half}.weight",
    "LyCORIS in kohya": lambda path, half: f"lycoris_unet_{path.replace('.', '_')}.lora_{half}.weight",
    "diffusers' kohya format": lambda path, half: f"lora_unet_{path.replace('.', '_')}_lora.{half}.weight",
    "diffusers' kohya format, dotted": lambda path, half: f"lora_unet_{path.replace('.', '_')}.lora.{half}.weight",
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_layer_is_found_by_every_spelling_of_its_name(name: str, tmp_path: Path) -> None:
    deltas = files.random_deltas(tiny_bases.sd_pipeline().unet, files.TRANSFORMERS)
    tensors = {SPELLINGS[name](path, "down"): delta.down for path, delta in deltas.items()}
    tensors |= {SPELLINGS[name](path, "up"): delta.up for path, delta in deltas.items()}
    numbers = {"scale_weight": torch.ones(1), "__dtype": torch.zeros(1), "global_step": torch.tensor(700)}
    adapter = load_adapter(files.saved(tmp_path / "a.safetensors", tensors | numbers))
    assert adapter.layers.keys() == deltas.keys()
    for path, delta in deltas.items():
        torch.testing.assert_close(adapter.layers[path].dense(), delta.dense().flatten(1).float())


def test_old_attention_processors_in_diffusers_kohya_format_are_found(tmp_path: Path) -> None:
    deltas = files.random_deltas(tiny_bases.sd_pipeline().unet, files.ATTENTIONS)
    old = files.attention_processors(deltas)
    flat = {
        "lora_" + key.removesuffix(f".{half}.weight").replace(".", "_") + f".{half}.weight": tensor
        for key, tensor in old.items()
        for half in ("down", "up")
        if f".{half}." in key
    }
    assert load_adapter(files.saved(tmp_path / "a.safetensors", flat)).layers.keys() == deltas.keys()


def test_onetrainers_original_names_are_those_of_comfyui_without_a_prefix(tmp_path: Path) -> None:
    deltas = files.random_deltas(tiny_bases.sdxl_pipeline().unet, files.TRANSFORMERS)
    bare = {key.removeprefix("diffusion_model."): t for key, t in files.comfy(deltas, files.TINY_SGM).items()}
    assert load_adapter(files.saved(tmp_path / "a.safetensors", bare)).layers.keys() == deltas.keys()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # PEFT asks transformers for it
def test_a_peft_folder_of_a_text_encoder_is_read_under_the_names_of_transformers_5(tmp_path: Path) -> None:
    pipe = tiny_bases.sd_pipeline()
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(pipe.text_encoder, config).save_pretrained(tmp_path / "te")
    adapter = load_adapter(tmp_path / "te")
    assert not adapter.layers
    check_fits(Base(tiny_bases.sd_pipeline()), ActiveAdapter(adapter))


FAMILY_CASES: dict[str, tuple[str, tuple[int, int], dict[str, str], str]] = {
    "header of kohya": ("lora_unet_mid_block_attentions_0_proj_in", (8, 8), {"ss_base_model_version": "sd_v1"}, "sd1"),
    "header of Stability": (
        "lora_unet_mid_block_attentions_0_proj_in",
        (8, 8),
        {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"},
        "sdxl",
    ),
    "SDXL's second encoder": ("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", (1280, 1280), {}, "sdxl"),
    "SD 1.5's encoder": ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", (768, 768), {}, "sd1"),
    "SD 2's encoder": ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", (1024, 1024), {}, "sd2"),
    "SDXL's self-attention": (
        "lora_unet_output_blocks_0_1_transformer_blocks_0_attn1_to_q",
        (1280, 1280),
        {},
        "sdxl",
    ),
}


@pytest.mark.parametrize("name", FAMILY_CASES)
def test_the_family_is_known_without_cross_attention(name: str, tmp_path: Path) -> None:
    layer, (d_in, d_out), header, family = FAMILY_CASES[name]
    pair = {f"{layer}.lora_down.weight": torch.ones(2, d_in), f"{layer}.lora_up.weight": torch.ones(d_out, 2)}
    card = load_adapter(files.saved(tmp_path / "a.safetensors", pair, header)).card
    assert (card.family, card.targets) == (family, "everything")


def test_a_scale_that_a_file_lost_can_be_supplied(sd_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    deltas = files.random_deltas(sd_pipe.unet, files.ATTENTIONS, ranks=(8, 4), alphas=(8.0, 4.0))
    path = files.saved(tmp_path / "a.safetensors", files.old_diffusers(deltas))
    assert {delta.scale for delta in load_adapter(path).layers.values()} == {1.0}
    supplied = parse_adapter(f"{path}:alpha=32").adapter
    assert {(delta.rank, delta.scale) for delta in supplied.layers.values()} == {(8, 4.0), (4, 8.0)}


def test_a_file_of_the_published_sd_script_is_told_of_the_scale_that_it_has_lost(tmp_path: Path) -> None:
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    deltas = {layer: files.Delta(torch.ones(8, 768), torch.ones(5, 8), 8.0)}
    published = {f"{layer}.lora_layer.{half}.weight": getattr(deltas[layer], half) for half in ("down", "up")}
    path = files.saved(tmp_path / "rex.safetensors", published)
    with pytest.warns(TaraWarning, match=r"trains at scale 4 .* rex\.safetensors:alpha=32"):
        parse_adapter(f"{path}:0.5")
    for quiet in (f"{path}:alpha=8", files.saved(tmp_path / "tom.safetensors", files.kohya(deltas))):
        parse_adapter(str(quiet))  # a warning would fail the test


def test_weights_keep_their_precision(sd_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    tensors = files.kohya(files.random_deltas(sd_pipe.unet, files.ATTENTIONS))
    halved = {key: tensor.to(torch.bfloat16) for key, tensor in tensors.items()}
    adapter = load_adapter(files.saved(tmp_path / "a.safetensors", halved))
    assert {delta.a.dtype for delta in adapter.layers.values()} == {torch.bfloat16}
    assert torch.isfinite(_composed(sd_pipe, ActiveAdapter(adapter))).all()


def test_an_adapter_of_several_ranks_and_convolutions_survives_its_own_file(
    sd_pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    deltas = _varied(sd_pipe, f"{files.TRANSFORMERS}|{files.CONVOLUTIONS}")
    foreign = load_adapter(files.saved(tmp_path / "foreign.safetensors", files.kohya(deltas)))
    ours = load_adapter(foreign.save(tmp_path / "ours.safetensors"))
    assert ours.card == foreign.unit_scale.card
    _assert_same_layers(ours, foreign.unit_scale)
    mine = _composed(sd_pipe, ActiveAdapter(ours))
    sd_pipe.load_lora_weights(tmp_path / "ours.safetensors")  # here the alphas are in PEFT's config and not lost
    assert _error(mine, _stock(sd_pipe)) < CLOSE


def _assert_same_layers(one: Adapter, other: Adapter) -> None:
    def facts(delta: LowRank) -> tuple[Any, ...]:
        return delta.scale, delta.kernel, delta.a.dtype, delta.b.dtype

    for mine, theirs in ((one.layers, other.layers), (one.text_layers, other.text_layers)):
        assert mine.keys() == theirs.keys()
        for path, delta in mine.items():
            assert facts(delta) == facts(theirs[path])
            assert torch.equal(delta.a, theirs[path].a)
            assert torch.equal(delta.b, theirs[path].b)
