"""Adapters as other tools' files and back: no weight changes, and others read what is written."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor

import foreign_files as files
import tiny_adapters
import tiny_bases
from tara.adapters.adapter import Adapter, load_adapter
from tara.adapters.convert import WRITERS, convert
from tara.adapters.formats.writing import Target
from tara.core.lora import LowRank
from tara.errors import TaraError
from tara.families.base import Base
from tara.families.text import TEXT_ENCODERS
from tara.inference.active_adapter import ActiveAdapter
from tara.inference.fusing import fused_text


def _described(header: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in header.items() if key.startswith(("modelspec.", "ss_"))}


def _header(path: Path) -> dict[str, str]:
    with safe_open(path / "adapter_model.safetensors" if path.is_dir() else path, framework="pt") as file:
        return dict(file.metadata())


def _out(folder: Path, to: Target, name: str = "rex") -> Path:
    return folder / (f"{name}-{to}" if to == "peft" else f"{name}-{to}.safetensors")


def _facts(adapter: Adapter) -> dict[str, Any]:
    """All that must survive, in a form that compares: A bit by bit, B with its scale, alphas, shapes."""
    return {
        path: (adapter.card.alpha_of(path), delta.rank, delta.kernel, delta.a.dtype, _bits(delta.a), _bits(delta.b))
        for path, delta in adapter.unit_scale.all_layers.items()
    }


def _assert_same_deltas(adapter: Adapter, other: Adapter) -> None:
    """The deltas' formula in float64: what is stored in less than float32 is not rounded once more."""
    for layer, delta in adapter.all_layers.items():
        written = other.all_layers[layer]
        assert (written.scale, written.kernel) == (1, delta.kernel)
        assert torch.equal(written.a, delta.a)
        torch.testing.assert_close(written.b.double(), delta.scale * delta.b.double(), rtol=1e-7, atol=0)


def _bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _foreign(pipe: Any, layers: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A kohya file with ranks and alphas that differ, some of which no short number holds."""
    deltas = files.random_deltas(pipe.unet, layers, ranks=(4, 3, 5), alphas=(1.0, 2.7, 0.1, 8.0))
    tensors = files.kohya(deltas, files.TINY_SGM if hasattr(pipe, "text_encoder_2") else None)
    return files.saved(folder / "foreign.safetensors", {key: tensor.to(dtype) for key, tensor in tensors.items()})


@pytest.mark.parametrize("to", WRITERS)
@pytest.mark.parametrize("shape", ["sd", "sdxl", "bf16"])
def test_a_round_trip_changes_no_weight(to: Target, shape: str, tmp_path: Path) -> None:
    pipe = tiny_bases.sdxl_pipeline() if shape == "sdxl" else tiny_bases.sd_pipeline()
    layers = files.TRANSFORMERS if shape == "sdxl" else f"{files.TRANSFORMERS}|{files.CONVOLUTIONS}"
    dtype = torch.bfloat16 if shape == "bf16" else torch.float32
    foreign = load_adapter(_foreign(pipe, layers, tmp_path, dtype))
    family = Base(pipe).family.name  # tiny widths do not tell it
    named = Adapter(
        foreign.card.model_copy(update={"rare_word": "xlo", "class_word": "dog", "family": family}), foreign.layers
    )
    there = load_adapter(convert(named, to, _out(tmp_path, to)))
    back = load_adapter(convert(there, "kohya", tmp_path / "back.safetensors"))
    assert _facts(there) == _facts(back)
    _assert_same_deltas(named, there)
    assert there.card == back.card == named.unit_scale.card


@pytest.mark.parametrize("to", WRITERS)
def test_an_adapter_of_ours_comes_back_with_its_card(to: Target, any_pipe: Any, tmp_path: Path) -> None:
    adapter = tiny_adapters.random_adapter(Base(any_pipe), targets=tiny_adapters.ATTENTION, scale=4 / 3)
    back = load_adapter(convert(adapter, to, _out(tmp_path, to)))
    assert back.card == adapter.unit_scale.card
    _assert_same_deltas(adapter, back)


def test_text_encoder_layers_are_kept_where_there_is_room(tmp_path: Path) -> None:
    pipe = tiny_bases.sdxl_pipeline()
    tensors = files.kohya_text(pipe, "text_encoder", "lora_te1_") | files.kohya_text(
        pipe, "text_encoder_2", "lora_te2_"
    )
    adapter = load_adapter(files.saved(tmp_path / "te.safetensors", tensors))
    for to in ("diffusers", "kohya"):
        _assert_same_deltas(adapter, load_adapter(convert(adapter, to, _out(tmp_path, to))))
    assert _keys(_out(tmp_path, "kohya")) == tensors.keys()
    with pytest.raises(TaraError, match=r"PEFT folder is for one model.*text_encoder"):
        convert(adapter, "peft", tmp_path / "peft")


@pytest.mark.parametrize("to", ["diffusers", "tara", "kohya"])
def test_diffusers_loads_text_encoder_layers_that_are_written(to: Target, any_pipe: Any, tmp_path: Path) -> None:
    text: dict[str, LowRank] = {}
    for name in TEXT_ENCODERS:
        for path, delta in files.random_deltas(getattr(any_pipe, name, torch.nn.Module()), r"self_attn\.\w+$").items():
            layer = f"{name}.text_model.{path.removeprefix('text_model.')}"
            text[layer] = LowRank(delta.down, delta.up, 0.5)
    adapter = replace(tiny_adapters.random_adapter(Base(any_pipe)), text_layers=text)
    path = convert(adapter, to, _out(tmp_path, to))
    before = Base(any_pipe).encode(["a xlo dog"]).embeddings
    any_pipe.load_lora_weights(path)
    theirs = Base(any_pipe).encode(["a xlo dog"]).embeddings
    any_pipe.unload_lora_weights()
    with fused_text(Base(any_pipe), [ActiveAdapter(adapter)]):
        ours = Base(any_pipe).encode(["a xlo dog"]).embeddings
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (theirs - before).abs().max() > 0.01


def test_every_scale_is_in_the_weights_so_that_no_reader_loses_it(any_pipe: Any, tmp_path: Path) -> None:
    adapter = tiny_adapters.random_adapter(Base(any_pipe), targets=tiny_adapters.ATTENTION, scale=3.0)
    tensors = safetensors.torch.load_file(convert(adapter, "diffusers", tmp_path / "a.safetensors"))
    for layer, delta in adapter.layers.items():  # as ComfyUI and old releases of diffusers read it: B A, no header
        product = tensors[f"unet.{layer}.lora_B.weight"] @ tensors[f"unet.{layer}.lora_A.weight"]
        torch.testing.assert_close(product, delta.dense(), rtol=1e-5, atol=1e-6)


def test_kohyas_block_numbers_of_sdxl_do_not_depend_on_which_layers_there_are(tmp_path: Path) -> None:
    delta = files.Delta(torch.ones(2, 640), torch.ones(640, 2), 2.0)
    name = "down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_q"
    text = {
        f"text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_{half}.weight": torch.ones(2, 2)
        for half in "AB"
    }
    adapter = load_adapter(files.saved(tmp_path / "a.safetensors", files.diffusers({name: delta}) | text))
    keys = _keys(convert(adapter, "kohya", tmp_path / "k.safetensors"))
    assert "lora_unet_input_blocks_7_1_transformer_blocks_0_attn1_to_q.lora_down.weight" in keys
    unknown = replace(adapter, card=adapter.card.model_copy(update={"family": "sdxl-64"}))
    with pytest.raises(TaraError, match=r"contain block numbers of the base.*Convert it to diffusers"):
        convert(unknown, "kohya", tmp_path / "k.safetensors")


def test_a_converted_file_keeps_what_its_sources_header_tells(tmp_path: Path) -> None:
    deltas = files.random_deltas(tiny_bases.sd_pipeline().unet, files.ATTENTIONS, alphas=(1.0,))
    told = {"ss_tag_frequency": '{"a": {"p3x": 4}}', "ss_network_alpha": "1", "sshs_model_hash": "ab", "ss_steps": "9"}
    foreign = load_adapter(files.saved(tmp_path / "a.safetensors", files.kohya(deltas), told))
    header = _header(convert(foreign, "diffusers", tmp_path / "b.safetensors"))
    assert (header["ss_tag_frequency"], header["ss_steps"]) == (told["ss_tag_frequency"], "9")
    assert header["ss_network_alpha"] == "4.0"  # the scale is in B now
    assert "sshs_model_hash" not in header


def _keys(path: Path) -> set[str]:
    with safe_open(path, framework="pt") as file:
        return set(file.keys())


@torch.no_grad()
def _predicted(pipe: Any) -> Tensor:
    base = Base(pipe)
    torch.manual_seed(0)
    return base.predict(torch.randn(1, 4, 16, 16), torch.tensor([400]), base.encode(["a xlo dog"]))


@pytest.mark.parametrize("to", WRITERS)
def test_other_tools_read_what_is_written_at_its_scale(to: Target, any_pipe: Any, tmp_path: Path) -> None:
    adapter = tiny_adapters.random_adapter(Base(any_pipe), targets=tiny_adapters.ATTENTION, scale=1.5)
    path = convert(adapter, to, _out(tmp_path, to))
    if to == "peft":
        unet = any_pipe.unet
        any_pipe.unet = PeftModel.from_pretrained(unet, path)
        theirs = _predicted(any_pipe)
        any_pipe.unet = any_pipe.unet.unload()
    else:
        any_pipe.load_lora_weights(path)
        theirs = _predicted(any_pipe)
        any_pipe.unload_lora_weights()
    without = _predicted(any_pipe)
    with torch.no_grad():
        for layer, delta in adapter.layers.items():
            any_pipe.unet.get_submodule(layer).weight += delta.dense()
    formula = _predicted(any_pipe)
    assert float((theirs - formula).norm() / formula.norm()) < 1e-5
    assert float((without - formula).norm() / formula.norm()) > 0.01


@pytest.mark.parametrize("to", WRITERS)
def test_other_tools_are_told_what_the_card_says(to: Target, tmp_path: Path) -> None:
    base = Base(tiny_bases.sd_pipeline())
    adapter = tiny_adapters.random_adapter(
        base,
        family="sd1",
        base="sd15",
        settings={"steps": 800, "learning_rate": 1e-4, "seed": None, "resolution": 512, "predicts": "epsilon"},
    )
    assert _described(_header(convert(adapter, to, _out(tmp_path, to)))) == {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": f"rex-{to}",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.prediction_type": "epsilon",
        "modelspec.resolution": "512x512",
        "modelspec.trigger_phrase": "xlo dog",
        "modelspec.usage_hint": "a photo of a xlo dog",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "4.0",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_sd_model_name": "sd15",
        "ss_output_name": f"rex-{to}",
        "ss_tag_frequency": json.dumps({"tara": {"xlo dog": 1}}),
        "ss_resolution": "512",
        "ss_unet_lr": "0.0001",
        "ss_max_train_steps": "800",
    }


@pytest.mark.parametrize(
    ("predicts", "architecture", "kohya"),
    [
        ("epsilon", "stable-diffusion-v2-512/lora", "sd_v2"),
        ("v_prediction", "stable-diffusion-v2-768-v/lora", "sd_v2_v"),
    ],
)
def test_both_kinds_of_sd2_are_told_apart(predicts: str, architecture: str, kohya: str, tmp_path: Path) -> None:
    base = Base(tiny_bases.sd_pipeline())
    adapter = tiny_adapters.random_adapter(base, family="sd2", settings={"predicts": predicts})
    told = _header(adapter.save(tmp_path / "rex.safetensors"))
    assert (told["modelspec.architecture"], told["ss_base_model_version"], told["ss_v2"]) == (
        architecture,
        kohya,
        "True",
    )


def test_what_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    pipe = tiny_bases.sd_pipeline()
    foreign = load_adapter(_foreign(pipe, files.ATTENTIONS, tmp_path))
    with pytest.raises(TaraError, match=r"--rare-word xlo --class-word dog"):
        convert(foreign, "tara", tmp_path / "a.safetensors")
    with pytest.raises(TaraError, match=r"does not end in \.safetensors"):
        convert(foreign, "kohya", tmp_path / "a.ckpt")
    with pytest.raises(TaraError, match="Give a folder"):
        convert(foreign, "peft", tmp_path / "a.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["foreign.safetensors"]
