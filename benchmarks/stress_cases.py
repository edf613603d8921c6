"""Hostile files beyond random mutations: bombs, a million keys, exponential patterns, unbounded nesting."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hostile
import torch
from hostile import LAYER, PEFT_CONFIG, RECIPE, adapters, image_bytes, packed, with_header

from tara.adapters.adapter import load_adapter
from tara.evaluation.folder import find_images
from tara.families.single_file import read_contents
from tara.inference.provenance import read_provenance
from tara.storage.images import read_image_with_alpha
from tara.storage.photos import read_photos
from tara.training.run.recipe_files import read_recipe


@dataclass(frozen=True, kw_only=True)
class StressCase:
    """A file, made when it is written because it may be large, and its reader."""

    name: str
    file: str
    content: Callable[[], bytes]
    read: Callable[[Path], object]

    def write(self, folder: Path) -> Path:
        """Write the file and what it needs beside it; its path."""
        path = folder / self.file
        if self.read is _folder_of_peft:
            (folder / "adapter_model.safetensors").write_bytes(adapters()[4])
        if self.read is _folder_of_photos and path.suffix in (".txt", ".jsonl"):
            (folder / "0.png").write_bytes(image_bytes("PNG"))
        path.write_bytes(self.content())
        return path


def _folder_of_peft(path: Path) -> object:
    return load_adapter(path.parent)


def _folder_of_photos(path: Path) -> object:
    return read_photos(path.parent, ["a {rare_word} {class_word}"])


def stress_cases() -> Iterator[StressCase]:
    """All stress cases."""
    yield from _safetensors()
    yield from _configs()
    yield from _images()
    yield from _texts()


def _safetensors() -> Iterator[StressCase]:
    def header(count: int, name: str = "unet.down_blocks.{}.lora_A.weight", size: int = 4) -> bytes:
        entries = (
            f'"{name.format(n)}":{{"dtype":"F32","shape":[1,1],"data_offsets":[{n * size},{n * size + 4}]}}'
            for n in range(count)
        )
        return b"{" + ",".join(entries).encode() + b"}"

    def wide(dtype: torch.dtype, rank: int, width: int) -> bytes:
        matrix = torch.ones(rank, width, dtype=dtype)
        return packed({f"unet.{LAYER}.lora_A.weight": matrix, f"unet.{LAYER}.lora_B.weight": matrix.T.contiguous()})

    files: dict[str, Callable[[], bytes]] = {
        "a header of 17 MiB": lambda: with_header(b"{" + b" " * (17 << 20) + b"}"),
        "10^6 keys": lambda: with_header(header(10**6), bytes(4 * 10**6)),
        "150,000 keys in a header under 16 MiB": lambda: with_header(header(150_000, "a{}"), bytes(600_000)),
        "15,000 layers without up matrices": lambda: with_header(header(15_000), bytes(60_000)),
        "all tensors over one another": lambda: with_header(header(100, size=0), bytes(4)),
        "a header length of 2^63": lambda: struct.pack("<Q", 2**63) + b"{}",
        "a header length one too long": lambda: struct.pack("<Q", 3) + b"{}",
        "a header of nests": lambda: with_header(b'{"a":' * 10**6 + b"1" + b"}" * 10**6),
        "metadata of nests": lambda: with_header(b'{"__metadata__":' + b"[" * 10**6 + b"]" * 10**6 + b"}"),
        "a card of nests": lambda: packed({"a": torch.ones(1)}, {"tara": '{"settings":' + "[" * 10**6}),
        "one key of 4 MiB": lambda: packed({"down_blocks." + "a" * (4 << 20) + ".lora_A.weight": torch.ones(1, 1)}),
        "one key of 10^6 parts": lambda: packed({"down_blocks" + ".a_b" * 10**6 + ".lora_A.weight": torch.ones(1, 1)}),
        "one kohya key of 10^6 parts": lambda: packed({"lora_unet" + "_a" * 10**6 + ".alpha": torch.ones(())}),
        "a shape of 2^62": lambda: with_header(
            b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}', bytes(4)
        ),
        "rank 10^5 in float16": lambda: wide(torch.float16, 10**5, 768),
        "rank 10^5 in float8": lambda: wide(torch.float8_e4m3fn, 10**5, 1280),
        "rank 10^5 of width 0": lambda: wide(torch.float32, 10**5, 0),
        "names of HTML and SVG": lambda: packed({"<svg onload=alert(1)>.lora_A.weight": torch.ones(1, 1)}),
        "names with escape sequences": lambda: packed({"\x1b]0;owned\x07\x1b[2Junet.lora_A.weight": torch.ones(1, 1)}),
    }
    for name, content in files.items():
        yield StressCase(name=name, file="a.safetensors", content=content, read=load_adapter)
        yield StressCase(name=f"{name}, as a base", file="b.safetensors", content=content, read=read_contents)


def _configs() -> Iterator[StressCase]:
    evil = {"exponential groups": "(a|a)" * 40 + "b", "stars": ".*_" * 4 + "Z", "nests": "(" * 9000 + ")" * 9000}
    evil |= {"many choices": "(" + "|".join(f"to_{n}" for n in range(10**5)) + ")", "counts": "(a{9999}){9999}"}
    configs: dict[str, object] = {f"a pattern of {name}": {"alpha_pattern": {text: 2}} for name, text in evil.items()}
    configs["10^5 patterns"] = {"rank_pattern": {f"{n}.to_.": 2 for n in range(10**5)}}
    configs["10^5 layers named"] = {"target_modules": [f"{LAYER}{n}" for n in range(10**5)]}
    configs["an endless rank"] = {"r": float("inf")}
    configs["an alpha of 5000 digits"] = {"lora_alpha": 7}
    for name, config in configs.items():
        text = json.dumps(PEFT_CONFIG | config).replace('"lora_alpha": 7', '"lora_alpha": ' + "7" * 5000)
        yield StressCase(name=name, file="adapter_config.json", content=text.encode, read=_folder_of_peft)
        tensors = {f"unet.{LAYER}{n}.lora_{half}.weight": torch.ones(2, 2) for n in range(800) for half in "AB"}
        header = {"lora_adapter_metadata": text}  # as in a U-Net's own file, without the pipeline's names
        yield StressCase(
            name=f"{name}, in a header, for 800 layers",
            file="a.safetensors",
            content=lambda tensors=tensors, header=header: packed(tensors, header),
            read=load_adapter,
        )
    yield StressCase(
        name="a config of nests",
        file="adapter_config.json",
        content=lambda: b'{"r":' + b"[" * 10**6,
        read=_folder_of_peft,
    )


def png(width: int, height: int, bits: int = 8, colour: int = 2, chunks: bytes = b"") -> bytes:
    """A black PNG of any size, in few bytes."""
    channels = {0: 1, 2: 3, 3: 1, 6: 4}[colour]
    line = 1 + (width * channels * bits + 7) // 8
    compressor, parts = zlib.compressobj(9), list[bytes]()
    zeros = bytes(1 << 20)
    left = line * height
    while left > 0:
        parts.append(compressor.compress(zeros[: min(left, len(zeros))]))
        left -= len(zeros)
    parts.append(compressor.flush())
    palette = chunk(b"PLTE", bytes(3)) + chunk(b"tRNS", bytes(1)) if colour == 3 else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunks + palette + chunk(b"IDAT", b"".join(parts)) + chunk(b"IEND", b"")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _images() -> Iterator[StressCase]:
    bomb = zlib.compress(b"A" * (1 << 28), 9)
    gif = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0xF0, 0, 0) + bytes(6)
    gif += b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x4c\x01\x00;"
    turned = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"[6:]
    jpeg = bytearray(image_bytes("JPEG"))
    size = jpeg.index(b"\xff\xc0") + 5
    jpeg[size : size + 4] = struct.pack(">HH", 65000, 65000)
    files: dict[str, Callable[[], bytes]] = {
        "PNG of 50,000 x 50,000": lambda: png(50_000, 50_000, bits=1, colour=0),
        "PNG of 13,000 x 13,000": lambda: png(13_000, 13_000),
        "PNG of 9,000 x 9,000 with a palette": lambda: png(9_000, 9_000, colour=3),
        "PNG of 8,000 x 8,000 with transparency": lambda: png(8_000, 8_000, colour=6),
        "PNG of 7,000 x 7,000, to be turned": lambda: png(7_000, 7_000, chunks=chunk(b"eXIf", turned)),
        "PNG of 178,000,000 x 1": lambda: png(178_000_000, 1, bits=1, colour=0),
        "GIF of 65,535 x 65,535": lambda: gif,
        "JPEG of 65,000 x 65,000": lambda: bytes(jpeg),
        "PNG with a text of 256 MiB": lambda: png(8, 8, chunks=chunk(b"zTXt", b"tara\0\0" + bomb)),
        "PNG with an international text of 256 MiB": lambda: png(
            8, 8, chunks=chunk(b"iTXt", b"tara\0\x01\0\0\0" + bomb)
        ),
        "PNG with 10^5 texts": lambda: png(8, 8, chunks=chunk(b"tEXt", b"tara\0{}") * 10**5),
        "PNG with a profile of 256 MiB": lambda: png(8, 8, chunks=chunk(b"iCCP", b"a\0\0" + bomb)),
        "PNG with metadata of nests": lambda: png(8, 8, chunks=chunk(b"tEXt", b"tara\0" + b'{"settings":' * 10**4)),
    }
    for name, content in files.items():
        yield StressCase(name=name, file="0.png", content=content, read=_folder_of_photos)
        yield StressCase(name=f"{name}, as a start image", file="a.png", content=content, read=read_image_with_alpha)
        yield StressCase(
            name=f"{name}, as a generated image", file="seed-0001.png", content=content, read=read_provenance
        )
    name = "<svg onload=alert(1)>\x1b[2J\u202e.png"
    yield StressCase(name="a photo with a hostile name", file=name, content=lambda: b"none", read=_folder_of_photos)
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    yield StressCase(name="an SVG as a photo", file="0.png", content=lambda: svg, read=_folder_of_photos)


def _texts() -> Iterator[StressCase]:
    recipes: dict[str, bytes] = {
        "nests": b"a = " + b"[" * 10**5,
        "nested tables": b"a = " + b"{a=" * 10**5,
        "a key of 10^5 parts": b"[" + b"a." * 10**5 + b"a]",
        "50 MiB of comments": b"# nothing\n" * (5 << 20),
        "50,000 concepts": b'[[concept]]\nimages="a"\nrare_word="b"\nclass_word="c"\n' * 50_000,
        "a number of 5,000 digits": b"a = " + b"9" * 5000,
        "a word of 10 MiB": RECIPE.replace(b"xlo", b"x" * (10 << 20)),
        "a name with a null": RECIPE.replace(b"photos", b"a\\u0000b"),
        "two concepts of one name": RECIPE + RECIPE[RECIPE.index(b"[[") :],
    }
    for name, content in recipes.items():
        yield StressCase(name=f"a recipe of {name}", file="r.toml", content=lambda c=content: c, read=read_recipe)
    nests = b'{"settings":' * 10**5
    yield StressCase(
        name="run settings of nests",
        file="settings.json",
        content=lambda: nests,
        read=lambda path: read_recipe(path.parent),
    )
    yield StressCase(
        name="a list of nests", file="l.json", content=lambda: b"[" * 10**6, read=lambda p: find_images([p])
    )
    captions = {
        "0.txt": {"a caption of 300 MiB": lambda: b"a photo " * (300 << 17), "a caption of nulls": lambda: bytes(99)},
        hostile.TABLE: {
            "a table of nests": lambda: b"[" * 10**6,
            "a table of 10^6 lines": lambda: b'{"file_name": "0.png", "text": "a"}\n' * 10**6,
            "a table of one line of 100 MiB": lambda: b'{"file_name": "0.png", "text": "' + b"a" * (100 << 20) + b'"}',
            "a table of a number of 5,000 digits": lambda: b'{"file_name": ' + b"9" * 5000 + b"}",
        },
    }
    for file, contents in captions.items():
        for name, content in contents.items():
            yield StressCase(name=name, file=file, content=content, read=_folder_of_photos)
