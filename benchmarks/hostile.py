"""Readers of other people's files, valid files of every kind for them, and random mutations of these.

`fuzz.py` gives the mutated files to the readers; valid files are made here from configs, nothing is downloaded.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image

from tara.adapters.adapter import load_adapter
from tara.adapters.card import AdapterCard
from tara.evaluation.folder import find_images
from tara.families.settings import BaseSettings
from tara.families.single_file import read_contents
from tara.inference.provenance import Provenance, UsedFile, png_with_provenance, read_provenance
from tara.storage.images import read_image_with_alpha
from tara.storage.photos import read_photos
from tara.training.checkpoints import HEADER_KEY, load_checkpoint
from tara.training.run.recipe_files import read_recipe

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
TABLE = "metadata.jsonl"
FLAT = LAYER.replace(".", "_")
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
DOWN, UP = torch.ones(2, 6), torch.ones(4, 2)
CARD = AdapterCard(rare_word="xlo", class_word="dog", family="sd1", rank=2, alpha=4, phrase="a photo of a xlo dog")
PEFT_CONFIG = {"r": 2, "lora_alpha": 4, "rank_pattern": {}, "alpha_pattern": {r"to_\w+": 8}, "target_modules": [LAYER]}
RECIPE = b"""
[settings]
base = "sd15"
steps = 100
learning_rate = 1e-4
captions = "fixed"

[[concept]]
images = "photos"
rare_word = "xlo"
class_word = "dog"
caption_templates = ["a {rare_word} {class_word}", 'the {rare_word}']
is_style = false
"""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A reader of files that others wrote: the file that it gets, and valid examples of it."""

    name: str
    file: str
    read: Callable[[Path], object]
    """Called with the path of the file; anything but a TaraError that it raises is a failure."""
    samples: tuple[bytes, ...]
    beside: Mapping[str, bytes] | None = None
    """Other files of the same folder, which are not mutated."""


def packed(tensors: Mapping[str, torch.Tensor], header: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file."""
    return safetensors.torch.save({name: tensor.clone() for name, tensor in tensors.items()}, dict(header or {}))


def with_header(header: bytes, data: bytes = b"") -> bytes:
    """A safetensors file of any header, with the length of that header."""
    return struct.pack("<Q", len(header)) + header + data


def adapters() -> tuple[bytes, ...]:
    """An adapter of two matrices in every style."""
    unet = f"unet.{LAYER}"
    ours = {f"{unet}.lora_A.weight": DOWN, f"{unet}.lora_B.weight": UP}
    processor = unet.replace("to_k", "processor.to_k_lora")
    comfy = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k"
    config = {f"unet.{name}": value for name, value in PEFT_CONFIG.items()}
    return (
        packed(ours, {"tara": CARD.model_dump_json(), "lora_adapter_metadata": json.dumps(config)}),
        packed(ours, {"lora_adapter_metadata": json.dumps(PEFT_CONFIG)}),
        packed(
            {
                f"lora_unet_{FLAT}.lora_down.weight": DOWN,
                f"lora_unet_{FLAT}.lora_up.weight": UP,
                f"lora_unet_{FLAT}.alpha": torch.tensor(2.0),
                f"lora_te_{TEXT.replace('.', '_')}.lora_down.weight": DOWN.half(),
                f"lora_te_{TEXT.replace('.', '_')}.lora_up.weight": UP.half(),
            }
        ),
        packed({f"{comfy}.lora_down.weight": DOWN, f"{comfy}.lora_up.weight": UP, f"{comfy}.diff_b": torch.zeros(4)}),
        packed({f"base_model.model.{LAYER}.lora_A.weight": DOWN, f"base_model.model.{LAYER}.lora_B.weight": UP}),
        packed({f"{processor}.down.weight": DOWN, f"{processor}.up.weight": UP}),
        packed({f"{unet}.lora.down.weight": DOWN[..., None, None], f"{unet}.lora.up.weight": UP[..., None, None]}),
        packed({f"{LAYER}.lora_layer.down.weight": DOWN, f"{LAYER}.lora_layer.up.weight": UP, "conv_in.weight": UP}),
        packed({"emb_params": torch.ones(2, 8)}),
        packed({"clip_l": torch.ones(1, 8), "clip_g": torch.ones(1, 4)}),
    )


def image_bytes(style: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((16, 16)).convert("RGB").save(buffer, format=style, **options)
    return buffer.getvalue()


def readers() -> tuple[Reader, ...]:
    """Every reader of a file that may come from somebody else."""
    photo = image_bytes("PNG")
    provenance = Provenance(
        prompt="a xlo dog",
        seed=3,
        adapters=(UsedFile(given="a.safetensors:0.8", path="a.safetensors", sha256="0"),),
        base=BaseSettings(base="sd15"),
    )
    generated = png_with_provenance(Image.new("RGB", (8, 8)), provenance)
    exif = Image.Exif()
    exif[0x0112] = 6
    checkpoint = packed({"weights": torch.ones(1, 4)}, {HEADER_KEY: json.dumps({"step": 3, "optimizer": {}})})
    original = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2, 4)}
    original |= {"model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.ones(2, 768)}
    concept = {"images": "a", "rare_word": "xlo", "class_word": "dog"}
    run = {"settings": {"base": "sd15", "steps": 9}, "concepts": [concept]}
    listed = [{"file": "0.png", "prompt": "a xlo dog", "seed": 1, "subjects": ["xlo dog"]}]
    peft = {"adapter_model.safetensors": adapters()[4]}
    photos = {"0.png": photo}
    table = b'{"file_name": "0.png", "text": "a {rare_word} {class_word}"}\n'
    jpeg, webp = image_bytes("JPEG", exif=exif), image_bytes("WEBP")
    return (
        Reader(name="adapter", file="a.safetensors", read=load_adapter, samples=adapters()),
        Reader(
            name="PEFT config",
            file="adapter_config.json",
            read=lambda path: load_adapter(path.parent),
            samples=(json.dumps(PEFT_CONFIG).encode(),),
            beside=peft,
        ),
        Reader(
            name="base checkpoint",
            file="b.safetensors",
            read=read_contents,
            samples=(packed(original, {"format": "pt"}),),
        ),
        Reader(name="training checkpoint", file="step-000003.safetensors", read=load_checkpoint, samples=(checkpoint,)),
        Reader(
            name="caption",
            file="0.txt",
            read=lambda path: read_photos(path.parent, ["a {rare_word}"]),
            samples=(b"a {rare_word} {class_word} on grass\n", "\ufeffein schönes Bild".encode()),
            beside=photos,
        ),
        Reader(
            name="caption table",
            file=TABLE,
            read=lambda path: read_photos(path.parent, ["a {rare_word}"]),
            samples=(table,),
            beside=photos,
        ),
        Reader(
            name="image",
            file="0.png",
            read=read_image_with_alpha,
            samples=(photo, generated, jpeg, webp, image_bytes("GIF")),
        ),
        Reader(name="PNG metadata", file="seed-0003.png", read=read_provenance, samples=(generated,)),
        Reader(name="recipe", file="r.toml", read=read_recipe, samples=(RECIPE,)),
        Reader(
            name="run settings",
            file="xlo-dog.run/settings.json",
            read=lambda path: read_recipe(path.parent),
            samples=(json.dumps(run).encode(),),
        ),
        Reader(
            name="list of images",
            file="list.json",
            read=lambda path: find_images([path]),
            samples=(json.dumps(listed).encode(),),
            beside=photos,
        ),
    )


WORDS = (
    *(
        b"\0",
        b"\n",
        b"\x1b[2J",
        b"../",
        b"..\\",
        b"<script>alert(1)</script>",
        b"<svg onload=alert(1)>",
        b"{",
        b"}",
        b"[",
    ),
    *(b'"', b"\\u0000", b"\\ud800", b"\xff\xfe", b"NaN", b"Infinity", b"-1", b"1e999", b"9" * 5000, b"null", b"true"),
    *("\u202e\u200b\U0001f600".encode(), b"[" * 3000, b'{"a":' * 3000, b"(a|a)*" * 9, b"%s%n", b"a." * 2000, b"lora_A"),
)
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**53, 2**63 - 1, 2**63, 2**64 - 1)


def mutated(good: bytes, chance: random.Random, others: tuple[bytes, ...]) -> bytes:
    """A file with one to four mutations; half of the safetensors files keep a header of the right length."""
    is_container = len(good) > 8 and int.from_bytes(good[:8], "little") <= len(good) - 8
    if is_container and chance.random() < 0.5:
        size = int.from_bytes(good[:8], "little")
        return with_header(_mutated(good[8 : 8 + size], chance, others), good[8 + size :])
    if good.startswith(b"\x89PNG") and chance.random() < 0.5:
        return with_checksums(_mutated(good, chance, others))
    return _mutated(good, chance, others)


def _mutated(good: bytes, chance: random.Random, others: tuple[bytes, ...]) -> bytes:
    content = bytearray(good)
    for _ in range(chance.randint(1, 4)):
        start = chance.randint(0, len(content))
        stop = min(len(content), start + chance.randint(0, 8))
        match chance.randrange(9):
            case 0 if content:
                content[start % len(content)] ^= 1 << chance.randrange(8)
            case 1:
                content[start:stop] = chance.randbytes(stop - start)
            case 2:
                content[start:stop] = chance.choice(WORDS)
            case 3:
                content[start : start + 8] = struct.pack(chance.choice("<>") + "Q", chance.choice(NUMBERS))
            case 4:
                content[start : start + 4] = struct.pack(chance.choice("<>") + "I", chance.choice(NUMBERS) % 2**32)
            case 5:
                del content[start : start + chance.randint(1, 64)]
            case 6:
                content[start:start] = content[chance.randint(0, len(content)) :][:64]
            case 7:
                other = chance.choice(others)
                content[start:] = other[chance.randint(0, len(other)) :]
            case _:
                del content[start:]
    return bytes(content)


def with_checksums(content: bytes) -> bytes:
    """A mutated PNG with right checksums for its chunks, so that it is not refused for those."""
    parts, place = [content[:8]], 8
    while place + 12 <= len(content):
        size = int.from_bytes(content[place : place + 4], "big")
        body = content[place + 4 : place + 8 + size]
        parts.append(content[place : place + 4] + body + struct.pack(">I", zlib.crc32(body)))
        place += 12 + size
    return b"".join(parts) + content[place:]
