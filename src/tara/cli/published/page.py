"""The page about the published scripts' flags: ``python -m tara.cli.published.page > docs/seed-commands.md``."""

from tara.cli.published import SCRIPTS
from tara.cli.published.flag import Flag
from tara.cli.published.script import Script

PREFACE = """\
# The published scripts' commands

Three scripts at the root of this repository take the commands of the paper's own repository as they are and pass them
on to `tara`. This page is made of the tables that the scripts read (`python -m tara.cli.published.page`); a test keeps
them together.

## What they mean

- **The published method, not our defaults.** All attention projections learn (`targets = "attention"`), from the one
  training phrase, without mirror images; a rare word's embedding comes from the prompt itself. `tara train` and
  `tara generate` have other defaults: text keys and values alone, mirror images, and the context that
  `benchmarks/context_toyland.py` compares with this one.
- **One difference is meant.** The published code trains Stable Diffusion 1.5 with scale 4 (`--lora_alpha` 32 over
  `--lora_r` 8) and composes with scale 1. Here the file holds its scale, and drawing applies it.
- `--focus` and `--with_align_loss` are off unless given: without both, what is trained is a plain DreamBooth LoRA.
- **Switches** stand alone or with a value: `--focus`, `--focus true`, `--focus="true"`, `--focus=false`. **An empty
  value** (`--seed=`) counts as left out, and what an ending backslash leaves behind is dropped. **Words in angle
  brackets** such as `<rare_token>` are words like any other.
- **What a machine lacks is a note, not a failure**: fp16 and 8-bit AdamW without CUDA become float32 and AdamW, a
  tracker without its package or account is left out.
- **`accelerate launch`** starts a script in several processes, one for each GPU: they share every step's calls, so N
  processes learn what one with N times the `--gradient_accumulation_steps` does, and the first one writes. On CPUs
  accelerate starts several with `--multi_gpu`; with `--cpu` or a MULTI_CPU configuration it starts one, unless there is
  MPI, and a note says so. Pictures (`inference_tara.py`, `tara generate`) are drawn by the first process alone.
- **Without `python`**: once the package is installed, `train_dreambooth_tara_sdxl.py` is a command, as it is typed
  there.
- **`--output_dir`** holds one file in the end, `pytorch_lora_weights.safetensors`; checkpoints, previews, losses, class
  pictures and what goes to the hub lie in `pytorch_lora_weights.run/` beside it.
- **`--lora_list`** takes files, folders (such as an `--output_dir`) and hub ids. `--rare_token_list` may be left out,
  because the files know their words; if it is there, it must agree with them.
- **A flag that is unknown or refused** is named, with what to do instead; the exit code is then 2.
"""


def markdown() -> str:
    """The whole page."""
    return PREFACE + "".join(_table(script) for script in SCRIPTS)


def _table(script: Script) -> str:
    head = "| flag | | what it does, or why not | left out | also in |\n|---|---|---|---|---|\n"
    return f"\n## `{script.file}`\n\n{head}" + "".join(_row(flag) for flag in script.flags)


def _row(flag: Flag) -> str:
    default = "needed" if flag.needed else f"`{flag.default}`" if flag.default else ""
    origin = {"published": "published", "diffusers": "diffusers", "tara": "only here"}[flag.origin]
    return f"| `--{flag.name}` | {flag.verdict} | {flag.about} | {default} | {origin} |\n"


if __name__ == "__main__":
    print(markdown(), end="")
