"""Make src/tara/families/original_configs/merges.txt.gz: the merges of CLIP's tokenizer, from the open_clip_torch wheel.

The wheel's list (MIT licence, beside the result) goes on behind what CLIP uses, so the result is a fifth of its size:

    pip download --no-deps open_clip_torch==3.3.0
    python tools/clip_merges.py open_clip_torch-3.3.0-py3-none-any.whl
"""

import gzip
import sys
import zipfile
from pathlib import Path

MERGES = 49152 - 256 - 2  # what CLIP's vocabulary holds besides bytes and two special tokens
RESULT = Path(__file__).parents[1] / "src" / "tara" / "families" / "original_configs" / "merges.txt.gz"


def main(wheel: str) -> None:
    """Write the merges, one a line, always as the same bytes."""
    with zipfile.ZipFile(wheel) as archive:
        whole = gzip.decompress(archive.read("open_clip/bpe_simple_vocab_16e6.txt.gz")).decode("utf-8")
    merges = whole.split("\n")[1 : MERGES + 1]  # the first line is a version
    RESULT.write_bytes(gzip.compress("\n".join(merges).encode("utf-8"), mtime=0))
    print(f"{RESULT.name}: {len(merges)} merges, {RESULT.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
