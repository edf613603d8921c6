"""Commands that several tests of the command line give."""

from pathlib import Path

from tara.cli import main

TINY = ["--steps", "2", "--rank", "2", "--device", "cpu", "--preview-every", "0"]


def generate(trained: Path, base: Path, *more: str, prompt: str = "a xlo dog and a szn cat", adapters: int = 2) -> int:
    files = [part for name in ("rex", "tom")[:adapters] for part in ("-a", str(trained / f"{name}.safetensors"))]
    return main(["generate", prompt, *files, "--base", str(base), "--device", "cpu", "--steps", "2", *more])
