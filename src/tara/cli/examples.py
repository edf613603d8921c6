"""Two commands that run for each command, at the top of its help and in the sentence about a missing option."""

WORDS = "--rare-word xlo --class-word dog"
PAIR = '"a xlo dog and a szn cat on a beach" -a rex.safetensors -a tom.safetensors --base sd15'
PHOTOS = "-a rex.safetensors -a tom.safetensors -r xlo=photos/rex -r szn=photos/tom --base sd15"
EXAMPLES: dict[str, tuple[str, str]] = {
    "": ("tara demo", f"tara train --images photos/rex {WORDS} --base sd15 --out rex.safetensors"),
    "train": (
        f"tara train --images photos/rex {WORDS} --base sd15 --out rex.safetensors",
        "tara train concepts.toml --base sdxl --steps 800",
    ),
    "generate": (
        'tara generate "a xlo dog on a beach" -a rex.safetensors --base sd15',
        'tara generate "a xlo dog and a szn cat" -a rex.safetensors -a tom.safetensors:0.8 --base sd15 --seeds 0-7',
    ),
    "evaluate": ('tara evaluate folder beach -r "xlo dog=photos/rex"', f"tara evaluate pairs {PHOTOS}"),
    "evaluate folder": (
        'tara evaluate folder beach -r "xlo dog=photos/rex" -r "szn cat=photos/tom"',
        'tara evaluate folder with-tara plain-loras -r "xlo dog=photos/rex" --clip none',
    ),
    "evaluate pairs": (
        f"tara evaluate pairs {PHOTOS}",
        f'tara evaluate pairs {PHOTOS} --prompt "{{subjects}} in the snow"',
    ),
    "evaluate dreambooth": (
        "tara evaluate dreambooth -a rex.safetensors -r xlo=dreambooth/dataset/dog --base sd15",
        "tara evaluate dreambooth -a rex.safetensors -r xlo=dreambooth/dataset/dog --base sd15 --seeds 0",
    ),
    "attention": (
        'tara attention "a xlo dog" -a rex.safetensors --base sd15',
        f"tara attention {PAIR} --seed 7",
    ),
    "compare": (f"tara compare {PAIR}", f"tara compare {PAIR} --composers tara,sum"),
    "inspect": ("tara inspect rex.safetensors", "tara inspect pixel.safetensors --base sd15 --json"),
    "convert": (
        "tara convert rex.safetensors --to kohya --out rex-kohya.safetensors",
        f"tara convert pixel.safetensors --to tara --out pixel-tara.safetensors {WORDS}",
    ),
    "server": ("tara server --base sd15", "tara server key add ann"),
    "demo": ("tara demo", "tara demo --out demo-again"),
}


def with_examples(summary: str, command: str) -> str:
    """A command's help: what it does, and its examples."""
    return "\n\n".join((summary, *EXAMPLES[command]))
