import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from safetensors import safe_open

import tiny_adapters
from tara.adapters.adapter import Adapter, load_adapter
from tara.errors import TaraError
from tara.families.base import Base


@pytest.fixture
def adapter(sd_pipe: StableDiffusionPipeline) -> Adapter:
    return tiny_adapters.random_adapter(Base(sd_pipe), targets=tiny_adapters.ATTENTION, settings={"steps": 3})


def test_a_file_gives_back_the_adapter(adapter: Adapter, tmp_path: Path) -> None:
    loaded = load_adapter(adapter.save(tmp_path / "rex.safetensors"))
    assert loaded.card == adapter.card.model_copy(update={"alpha": 4})  # the scale of 4 is in B
    assert loaded.name == "rex.safetensors"
    assert loaded.layers.keys() == adapter.layers.keys()
    for path, low_rank in loaded.layers.items():
        assert torch.equal(low_rank.a, adapter.layers[path].a)
        assert torch.equal(low_rank.b, 4 * adapter.layers[path].b)
        assert low_rank.scale == 1


def test_the_parts_are_the_text_part_and_the_rest(adapter: Adapter) -> None:
    assert {path.rpartition("attn")[2] for path in adapter.text_kv_deltas} == {"2.to_k", "2.to_v"}
    assert len(adapter.global_deltas) == 3 * len(adapter.text_kv_deltas)
    assert adapter.text_kv_deltas.keys().isdisjoint(adapter.global_deltas)


def test_the_same_adapter_is_the_same_file(adapter: Adapter, tmp_path: Path) -> None:
    files = [adapter.save(tmp_path / f"{number}.safetensors").read_bytes() for number in range(4)]
    assert len(set(files)) == 1


def test_a_loaded_adapter_takes_about_its_files_size(adapter: Adapter, tmp_path: Path) -> None:
    path = adapter.save(tmp_path / "rex.safetensors")
    held = sum(t.untyped_storage().nbytes() for delta in load_adapter(path).layers.values() for t in (delta.a, delta.b))
    assert held < path.stat().st_size < 2 * held


def test_alpha_can_be_overridden(adapter: Adapter, tmp_path: Path) -> None:
    loaded = load_adapter(adapter.save(tmp_path / "rex.safetensors"), alpha=2)
    assert loaded.card.scale == 0.5
    assert {delta.scale for delta in loaded.layers.values()} == {0.5}


def test_the_header_holds_only_fields_of_pefts_lora_config(adapter: Adapter, tmp_path: Path) -> None:
    with safe_open(adapter.save(tmp_path / "rex.safetensors"), framework="pt") as file:
        header = file.metadata()
    fields = json.loads(header["lora_adapter_metadata"])
    assert all(name.startswith("unet.") for name in fields)
    config = LoraConfig(**{name.removeprefix("unet."): value for name, value in fields.items()})
    assert (config.r, config.lora_alpha) == (4, 4)


@pytest.mark.parametrize("targets", [tiny_adapters.CROSS_KV, tiny_adapters.ATTENTION])
def test_stock_diffusers_loads_it_at_its_scale(any_pipe: Any, targets: tuple[str, ...], tmp_path: Path) -> None:
    base = Base(any_pipe)
    adapter = tiny_adapters.random_adapter(base, targets=targets, scale=4.0)
    torch.manual_seed(0)
    latents, timesteps = torch.randn(2, 4, 16, 16), torch.tensor([10, 600])
    encoding = base.encode(["a xlo dog", "a cat"])
    with torch.no_grad():
        any_pipe.load_lora_weights(adapter.save(tmp_path / "rex.safetensors"))
        theirs = base.predict(latents, timesteps, encoding)
        any_pipe.unload_lora_weights()
        without = base.predict(latents, timesteps, encoding)
        for path, low_rank in adapter.layers.items():
            any_pipe.unet.get_submodule(path).weight += low_rank.dense()
        ours = base.predict(latents, timesteps, encoding)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (theirs - without).abs().max() > 0.01


def test_what_is_not_an_adapter_is_refused_in_one_sentence(adapter: Adapter, tmp_path: Path) -> None:
    good = adapter.save(tmp_path / "rex.safetensors").read_bytes()
    cases = {
        "empty": (b"", "is empty"),
        "truncated": (good[: len(good) // 2], "not a complete safetensors file"),
        "text": (b"<html>not found</html>" * 9, "not a complete safetensors file"),
        "foreign": (safetensors.torch.save({"unet.x.lora.down.weight": torch.zeros(1)}), "does not know"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / f"{name}.safetensors").write_bytes(content)
        with pytest.raises(TaraError, match=message):
            load_adapter(tmp_path / f"{name}.safetensors")
    with pytest.raises(TaraError, match=r"Did you mean 'rex\.safetensors'"):
        load_adapter(tmp_path / "rx.safetensors")
    with pytest.raises(TaraError, match="There is no adapter file"):
        load_adapter(tmp_path)


def _rewritten(source: Path, target: Path, card: str | None = None, **tensors: torch.Tensor) -> Path:
    with safe_open(source, framework="pt") as file:
        header = dict(file.metadata())
    kept = safetensors.torch.load_file(source) | tensors
    target.write_bytes(safetensors.torch.save(kept, metadata=header | ({} if card is None else {"tara": card})))
    return target


def test_damaged_and_newer_files_are_refused_by_name(adapter: Adapter, tmp_path: Path) -> None:
    good = adapter.save(tmp_path / "rex.safetensors")
    card = json.loads(adapter.card.model_dump_json())
    newer = _rewritten(good, tmp_path / "newer.safetensors", json.dumps(card | {"format_version": 99}))
    with pytest.raises(TaraError, match="format version 99"):
        load_adapter(newer)
    damaged = _rewritten(good, tmp_path / "damaged.safetensors", json.dumps(card | {"rank": "many"}))
    with pytest.raises(TaraError, match="damaged adapter card"):
        load_adapter(damaged)
    other_rank = _rewritten(good, tmp_path / "rank.safetensors", json.dumps(card | {"rank": 5}))
    with pytest.raises(TaraError, match="has no pair of rank 5"):
        load_adapter(other_rank)
    unknown = _rewritten(good, tmp_path / "unknown.safetensors", **{"unet.stray.dora": torch.zeros(1)})
    with pytest.raises(TaraError, match=r"'unet\.stray\.dora'"):
        load_adapter(unknown)
