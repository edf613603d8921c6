"""Files as an adversary would write them: every reader ends with a result or with one sentence, and soon."""

import ast
import json
import random
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SOURCES = Path(__file__).parents[2] / "src"
sys.path.insert(0, str(BENCHMARKS))
import hostile  # noqa: E402
import stress_cases  # noqa: E402

from tara.adapters.adapter import load_adapter  # noqa: E402
from tara.adapters.formats.peft_config import first_fitting  # noqa: E402
from tara.cli.terminal import one_line  # noqa: E402
from tara.errors import TaraError  # noqa: E402
from tara.storage.safetensors_file import MOST_HEADER, open_safetensors  # noqa: E402

READERS = {reader.name: reader for reader in hostile.readers()}
LAYERS = [
    f"{block}.attentions.{number}.transformer_blocks.0.{attention}.{projection}"
    for block in ("down_blocks.0", "down_blocks.12", "mid_block", "up_blocks.1")
    for number in range(2)
    for attention in ("attn1", "attn2")
    for projection in ("to_q", "to_k", "to_v", "to_out.0")
]
HUGE = "MiB", "10^6", "150,000", "13,000", "178,000,000", "50,000", "10^5 in float"
"""Stress cases that take long to write; `benchmarks/fuzz.py` has them all."""


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", READERS)
@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_a_mutated_file_is_read_or_refused_in_one_sentence(name: str, seed: int):
    reader, chance = READERS[name], random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        for beside, content in (reader.beside or {}).items():
            (Path(folder) / beside).write_bytes(content)
        path = Path(folder) / reader.file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(hostile.mutated(chance.choice(reader.samples), chance, reader.samples))
        assert len(told(reader, path).splitlines()) == 1


def told(reader: hostile.Reader | stress_cases.StressCase, path: Path) -> str:
    """What a person is told of a file: that it was read, or the sentence that refuses it."""
    try:
        reader.read(path)
    except TaraError as refusal:
        return one_line(str(refusal))
    return "read"


def small_cases() -> Iterator[stress_cases.StressCase]:
    yield from (case for case in stress_cases.stress_cases() if not any(size in case.name for size in HUGE))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore::UserWarning")
@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", list(small_cases()), ids=lambda case: case.name)
def test_a_stress_case_is_read_or_refused_soon(case: stress_cases.StressCase, tmp_path: Path):
    assert len(told(case, case.write(tmp_path)).splitlines()) == 1


def test_a_header_of_more_than_16_mib_is_not_read(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:  # sparse: nothing of the header is there to be read
        file.write(struct.pack("<Q", MOST_HEADER + 2**20))
        file.truncate(MOST_HEADER + 2**21)
    with pytest.raises(TaraError, match="header of 17 MiB"), open_safetensors(path):
        pass


def test_tensors_that_lie_over_one_another_are_refused(tmp_path: Path):
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = f'{{"unet.conv_in.lora_A.weight":{entry},"unet.conv_in.lora_B.weight":{entry}}}'.encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(hostile.with_header(header, bytes(4)))
    with pytest.raises(TaraError, match="is not a complete safetensors file"):
        load_adapter(path)


def test_a_rank_that_no_layer_has_room_for_is_refused(tmp_path: Path):
    path, down, up = tmp_path / "a.safetensors", torch.ones(20_000, 2), torch.ones(2, 20_000)
    names = f"unet.{hostile.LAYER}.lora_A.weight", f"unet.{hostile.LAYER}.lora_B.weight"
    safetensors.torch.save_file(dict(zip(names, (down, up), strict=True)), path)
    with pytest.raises(TaraError, match="has rank 20000, more than any layer allows"):
        load_adapter(path)


PATTERNS: dict[str, dict[str, int]] = {
    "ends of paths": {"to_k": 1, "attn2.to_q": 3, "attn1": 5},
    "a whole path before an end": {"to_k": 1, LAYERS[0]: 2},
    "gaps": {r"down_blocks\..*attn2.*to_(q|v)": 2, "attn2.to_q": 3},
    "alternatives": {r"mid_block.*|up_blocks\.1\..*": 4, "to_[qk]": 2},
    "classes and counts": {r"down_blocks\.[0-2]\.attentions\.\d{1,2}\..*": 7, r"[^.]+\.to_v": 1},
    "what is not before": {r"(?!down)\w+_blocks.*": 6, r".*(?<!attn1\.)to_k": 2},
    "anchors": {r"^mid_block.*to_q$": 2, r"^attn2.*": 3},
    "any character": {"to_.": 1},
    "repeated groups": {r"((\w+|\d)\.)*to_v": 8},
}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_fits_the_layers_that_peft_takes_it_for(name: str):
    pattern = PATTERNS[name]
    theirs = {layer: pattern[key] for layer in LAYERS if (key := get_pattern_key(list(pattern), layer)) in pattern}
    assert first_fitting(pattern, LAYERS) == theirs
    assert theirs


# what opens a pickle, or code, when it opens a file
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
FORBIDDEN_CALLS = {"torch.load", "torch.save", "eval", "exec", "compile", "pd.read_pickle", "torch.hub.load"}


@pytest.mark.parametrize("path", sorted(SOURCES.rglob("*.py")), ids=lambda path: path.relative_to(SOURCES).as_posix())
def test_no_pickle_is_ever_written_or_opened(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN_MODULES
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in FORBIDDEN_MODULES
        elif isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in FORBIDDEN_CALLS
            for keyword in node.keywords:
                value = ast.unparse(keyword.value)
                assert (keyword.arg, value) not in {("allow_pickle", "True"), ("use_safetensors", "False")}


def test_every_base_is_loaded_from_safetensors_alone():
    source = (SOURCES / "tara" / "families" / "loading.py").read_text(encoding="utf-8")
    calls = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("from_pretrained")
    ]
    assert calls
    assert all("use_safetensors=True" in call for call in calls)


def test_a_newer_format_is_refused_by_its_version_whatever_else_its_card_holds(tmp_path: Path):
    card = {"format_version": 2, "rank": "eight", "words": ["xlo"]}
    tensors = {f"unet.{hostile.LAYER}.lora_A.weight": hostile.DOWN, f"unet.{hostile.LAYER}.lora_B.weight": hostile.UP}
    path = tmp_path / "new.safetensors"
    path.write_bytes(hostile.packed(tensors, {"tara": json.dumps(card)}))
    with pytest.raises(TaraError, match=r"format version 2, but this version of tara reads up to 1\. Update tara"):
        load_adapter(path)
