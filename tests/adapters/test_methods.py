"""Files of other methods than LoRA, under their trainers' key names, act as their own formula in float64 says."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

import foreign_files as files
import tiny_bases
from tara.adapters.adapter import load_adapter
from tara.adapters.convert import convert
from tara.core.lora import low_rank_from_matrix, truncate_rank
from tara.errors import TaraError, TaraWarning
from tara.families.base import Base
from tara.inference.active_adapter import ActiveAdapter, parse_adapter
from tara.inference.batch import prompt_rows
from tara.inference.fitting import with_resolved_changes
from tara.inference.fusing import fused, global_part
from tara.inference.pipeline import Pipeline
from tara.inference.request import requests_for
from tara.inference.settings import GenerationSettings

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
CONVOLUTION = "down_blocks.0.resnets.0.conv1"
Made = tuple[dict[str, Tensor], Callable[[Tensor], Tensor]]
"""The tensors by the end of their key, and the weight (float64) that they make of a weight."""


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 100 * shape[0] + shape[-1]))


def _loha(shape: torch.Size) -> Made:
    out, size = shape[0], shape[1:].numel()
    w = {f"hada_w{n}_{h}": _noise(*((out, 3) if h == "a" else (3, size)), seed=n) for n in (1, 2) for h in "ab"}
    d = {name: tensor.double() for name, tensor in w.items()}
    delta = 0.5 * (d["hada_w1_a"] @ d["hada_w1_b"]) * (d["hada_w2_a"] @ d["hada_w2_b"])
    return w | {"alpha": torch.tensor(1.5)}, lambda weight: weight + delta.view(weight.shape)


def _tucker_loha(shape: torch.Size) -> Made:
    out, inner, *kernel = shape
    w = {"hada_t1": _noise(3, 3, *kernel), "hada_t2": _noise(3, 3, *kernel, seed=1)}
    for n in (1, 2):
        w |= {f"hada_w{n}_a": _noise(3, out, seed=n), f"hada_w{n}_b": _noise(3, inner, seed=n)}
    d = {name: tensor.double() for name, tensor in w.items()}
    one, two = (torch.einsum("ijkl,jr,ip->prkl", d[f"hada_t{n}"], d[f"hada_w{n}_b"], d[f"hada_w{n}_a"]) for n in (1, 2))
    return w | {"alpha": torch.tensor(6.0)}, lambda weight: weight + 2 * one * two


def _lokr(shape: torch.Size) -> Made:
    out, inner, *kernel = shape
    w1, a, b = _noise(2, 4), _noise(out // 2, 3), _noise(3, inner // 4 * torch.Size(kernel).numel())
    second = (a.double() @ b.double()).view(out // 2, inner // 4, *kernel)
    delta = 0.5 * torch.kron(w1.double().view(2, 4, *[1] * len(kernel)), second)
    return {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(1.5)}, lambda weight: weight + delta


def _whole_lokr(shape: torch.Size) -> Made:
    out, inner, *kernel = shape
    w1, w2 = _noise(2, 4), _noise(out // 2, inner // 4, *kernel)
    delta = torch.kron(w1.double().view(2, 4, *[1] * len(kernel)), w2.double())
    return {"lokr_w1": w1, "lokr_w2": w2, "alpha": torch.tensor(7.0)}, lambda weight: weight + delta


def _difference(shape: torch.Size) -> Made:
    delta = _noise(*shape)
    return {"diff": delta}, lambda weight: weight + delta.double()


def _locon(shape: torch.Size) -> tuple[dict[str, Tensor], Tensor]:
    out, inner, *kernel = shape
    down, up = _noise(4, inner, *kernel), _noise(out, 4, *[1] * len(kernel))
    delta = 0.5 * (up.double().flatten(1) @ down.double().flatten(1)).view(shape)
    return {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(2.0)}, delta


def _tucker(shape: torch.Size) -> Made:
    out, inner, *kernel = shape
    down, core, up = _noise(4, inner, 1, 1), _noise(4, 4, *kernel), _noise(out, 4, 1, 1)
    delta = torch.einsum("or,rskl,si->oikl", *(t.double().squeeze() for t in (up, core, down)))
    tensors = {"lora_down.weight": down, "lora_mid.weight": core, "lora_up.weight": up, "alpha": torch.tensor(4.0)}
    return tensors, lambda weight: weight + delta


def _dora(rows: bool) -> Callable[[torch.Size], Made]:
    def made(shape: torch.Size) -> Made:
        tensors, delta = _locon(shape)
        size = (shape[0], *[1] * (len(shape) - 1)) if rows else (1, shape[1], *[1] * (len(shape) - 2))
        magnitude = 1 + _noise(*size).abs()
        axes = [axis for axis in range(len(shape)) if size[axis] == 1]

        def formula(weight: Tensor) -> Tensor:
            whole = weight + delta
            return magnitude.double() * whole / whole.pow(2).sum(axes, keepdim=True).sqrt()

        return tensors | {"dora_scale": magnitude}, formula

    return made


def _oft(shape: torch.Size) -> Made:
    blocks = _noise(2, shape[0] // 2, shape[0] // 2)

    def formula(weight: Tensor) -> Tensor:
        skew = blocks.double() - blocks.double().mT
        skew = skew * min(1, 0.01 * len(weight) / skew.norm())
        one = torch.eye(skew.shape[-1], dtype=torch.float64)
        rotations = [(one + q) @ torch.linalg.inv(one - q) for q in skew]
        return (torch.block_diag(*rotations).T @ weight.flatten(1)).view_as(weight)

    return {"oft_blocks": blocks, "alpha": torch.tensor(0.01)}, formula


def _ia3(on_input: bool) -> Callable[[torch.Size], Made]:
    def made(shape: torch.Size) -> Made:
        by = _noise(shape[1] if on_input else shape[0])
        size = (1, -1) if on_input else (-1, 1)
        factor = 1 + by.double().view(*size, *[1] * (len(shape) - 2))
        return {"weight": by, "on_input": torch.tensor(int(on_input))}, lambda weight: weight * factor

    return made


BOTH = (LINEAR, CONVOLUTION)
FORMULAS: dict[str, tuple[Callable[[torch.Size], Made], tuple[str, ...], str]] = {
    "LoHa": (_loha, BOTH, "LoHa"),
    "LoHa with Tucker cores": (_tucker_loha, (CONVOLUTION,), "LoHa"),
    "LoKr": (_lokr, BOTH, "LoKr"),
    "LoKr of whole matrices": (_whole_lokr, BOTH, "LoKr"),
    "full difference": (_difference, BOTH, "full difference"),
    "LoCon with a Tucker core": (_tucker, (CONVOLUTION,), ""),
    "DoRA by rows": (_dora(rows=True), BOTH, "DoRA"),
    "DoRA by input channels": (_dora(rows=False), BOTH, "DoRA"),
    "OFT": (_oft, BOTH, "OFT"),
    "IA3 on the input": (_ia3(on_input=True), (LINEAR,), "IA3"),
    "IA3 on the output": (_ia3(on_input=False), BOTH, "IA3"),
}


def _written(pipe: Any, name: str, path: Path, prefix: str = "lora_unet_") -> tuple[Path, dict[str, Tensor]]:
    """The file, and the weights that its method makes of the base's by layer."""
    make, layers, _ = FORMULAS[name]
    tensors: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    for layer in layers:
        weight = pipe.unet.get_submodule(layer).weight.detach().double()
        made, formula = make(weight.shape)
        tensors |= {f"{prefix}{layer.replace('.', '_')}.{end}": tensor for end, tensor in made.items()}
        expected[layer] = formula(weight)
    return files.saved(path / "a.safetensors", tensors), expected


@pytest.mark.parametrize("prefix", ["lora_unet_", "lycoris_"])
@pytest.mark.parametrize("name", FORMULAS)
def test_a_method_changes_the_weights_as_its_formula_says(name: str, prefix: str, tmp_path: Path) -> None:
    pipe = tiny_bases.sd_pipeline()
    path, expected = _written(pipe, name, tmp_path, prefix)
    adapter = load_adapter(path)
    assert adapter.card.method == FORMULAS[name][2]
    base = Base(pipe)
    active = with_resolved_changes(base, ActiveAdapter(adapter))
    deltas = {layer: [(1.0, delta)] for layer, delta in active.adapter.layers.items()}
    with fused(base, deltas):
        for layer, weight in expected.items():
            assert (base.parameter(layer).double() - weight).norm() / weight.norm() < 1e-6


def test_norms_and_biases_change_by_their_difference(tmp_path: Path) -> None:
    pipe = tiny_bases.sd_pipeline()
    norm, layer = "down_blocks.0.attentions.0.transformer_blocks.0.norm1", CONVOLUTION
    parameters = {
        f"{norm}.weight": ("w_norm", pipe.unet.get_submodule(norm).weight),
        f"{norm}.bias": ("b_norm", pipe.unet.get_submodule(norm).bias),
        f"{layer}.bias": ("diff_b", pipe.unet.get_submodule(layer).bias),
    }
    tensors = {
        f"lora_unet_{path.rpartition('.')[0].replace('.', '_')}.{role}": _noise(*parameter.shape)
        for path, (role, parameter) in parameters.items()
    }
    expected = {
        path: (parameter + tensor).detach()
        for (path, (_, parameter)), tensor in zip(parameters.items(), tensors.values(), strict=True)
    }
    base, adapter = Base(pipe), load_adapter(files.saved(tmp_path / "a.safetensors", tensors))
    assert adapter.layers.keys() == expected.keys()
    with fused(base, global_part([ActiveAdapter(adapter)])):
        for path, parameter in expected.items():
            torch.testing.assert_close(base.parameter(path), parameter)


@pytest.mark.parametrize(
    "config",
    [
        peft.LoHaConfig(r=3, alpha=2, target_modules=["to_k", "conv1"], init_weights=False),
        peft.LoKrConfig(r=3, alpha=2, target_modules=["to_k", "conv1"], init_weights=False),
        peft.LoraConfig(r=3, lora_alpha=2, target_modules=["to_k", "conv1"], use_dora=True, init_lora_weights=False),
        peft.LoraConfig(r=3, lora_alpha=2, target_modules=["to_q"], lora_bias=False, init_lora_weights=False),
    ],
    ids=["LoHa", "LoKr", "DoRA", "LoRA"],
)
def test_what_peft_saves_changes_the_weights_as_in_peft(config: Any, tmp_path: Path) -> None:
    pipe = tiny_bases.sd_pipeline()
    plain = copy.deepcopy(pipe.unet)
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(pipe.unet, config)
    for name, parameter in wrapped.named_parameters():
        if "magnitude" in name:  # as it is after training
            parameter.data *= 1.1
    wrapped.save_pretrained(tmp_path / "rex")
    theirs: Mapping[str, Tensor] = wrapped.merge_and_unload().state_dict()
    pipe.unet = plain
    base = Base(pipe)
    active = with_resolved_changes(base, ActiveAdapter(load_adapter(tmp_path / "rex")))
    with fused(base, {layer: [(1.0, delta)] for layer, delta in active.adapter.layers.items()}):
        for name, weight in base.denoiser.state_dict().items():
            assert (weight - theirs[name]).norm() <= 2e-6 * theirs[name].norm(), name


def test_other_methods_act_as_a_whole_or_cut_for_regions_and_never_by_their_word(tmp_path: Path) -> None:
    pipe = tiny_bases.sd_pipeline()
    path, _ = _written(pipe, "LoHa", tmp_path)
    active, base = parse_adapter(f"{path}:rare_word=xlo,class_word=dog"), Base(pipe)
    prompt_rows(base, requests_for("a xlo dog", [active], GenerationSettings(composer="sum")))
    with pytest.raises(TaraError, match=r"contains LoHa, which cannot be masked.*composer sum"):
        prompt_rows(base, requests_for("a xlo dog", [active], GenerationSettings(composer="tara")))
    with pytest.warns(
        TaraWarning, match=r"contains LoHa and is reduced to rank 64 for regions: the relative error is 0\.\d%"
    ):
        prompt_rows(base, requests_for("a xlo dog", [active], GenerationSettings(composer="regions")))
    with pytest.raises(TaraError, match="contains LoHa, but only plain LoRAs can be converted"):
        convert(active.adapter, "kohya", tmp_path / "k.safetensors")


def test_a_low_rank_cut_is_the_nearest_one_and_tells_what_is_lost() -> None:
    delta = _noise(40, 60)
    cut, error = truncate_rank(low_rank_from_matrix(delta), 10)
    u, sizes, v = torch.linalg.svd(delta.double(), full_matrices=False)
    nearest = (u[:, :10] * sizes[:10]) @ v[:10]
    lost = float((delta - nearest).norm() / delta.double().norm())
    assert cut.rank == 10
    assert float((cut.dense() - delta).norm() / delta.norm()) == pytest.approx(error, rel=1e-4)
    assert error == pytest.approx(lost, rel=0.02)
    assert truncate_rank(cut, 10) == (cut, 0.0)


def test_a_bundled_embedding_is_loaded_by_diffusers_on_the_same_word(tmp_path: Path) -> None:
    pipe = tiny_bases.sd_pipeline()
    deltas = files.kohya(files.random_deltas(pipe.unet, r"down_blocks\.0.*attn2\.to_[kv]"))
    embedding = _noise(2, 32)
    path = files.saved(tmp_path / "a.safetensors", deltas | {"bundle_emb.pivo.string_to_param.*": embedding})
    adapter = load_adapter(path)
    assert adapter.card.rare_word == "pivo"
    other = tiny_bases.sd_pipeline()
    other.load_textual_inversion(embedding, token="pivo")
    without = load_adapter(files.saved(tmp_path / "b.safetensors", deltas))
    request: dict[str, Any] = {"seeds": [1], "steps": 1}
    (ours,) = Pipeline(Base(pipe))("a pivo dog", [adapter], **request)
    (theirs,) = Pipeline(Base(other))("a pivo dog", [ActiveAdapter(without, rare_word="pivo")], **request)
    assert ours.tobytes() == theirs.tobytes()
    Pipeline(Base(pipe))("a pivo dog", [adapter], **request)  # the word is there already
    changed = files.saved(tmp_path / "c.safetensors", deltas | {"bundle_emb.pivo.string_to_param.*": embedding + 1})
    with pytest.raises(TaraError, match="the pipeline has another one of that word"):
        Pipeline(Base(pipe))("a pivo dog", [load_adapter(changed)], **request)
