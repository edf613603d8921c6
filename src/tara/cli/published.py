"""The commands of the paper's repository run unchanged. This page lists their flags.

- They train as the published code does: every attention projection, on one prompt, without flipped images; `A` begins
  normal with standard deviation 1/rank; each token of a rare word is aligned; for SDXL every image is conditioned as a
  whole photo of the training resolution, and weight decay is 1e-4. With the same images, timesteps and noise, losses,
  gradients and AdamW steps are equal to rounding (`tests/training/test_published_formulas.py`). `tara train` has other
  defaults; its settings `init_lora_weights`, `alignment_subwords` and `size_conditioning` select the published form.
- Default values are those of the published README. They differ from the defaults of the published parsers, which are
  batch size 4, SDXL rank 4, SD 1.5 learning rate 5e-6, one epoch, tensorboard, 500 warm-up steps and a random seed.
- Intended differences:
  - The published code trains Stable Diffusion 1.5 at scale 4 (`--lora_alpha` over `--lora_r`) and generates at scale 1.
    Here the adapter stores its scale, and generation applies it. A file that was trained by the published code stores
    none: `tara generate` and `tara inspect` name the option `alpha=32`, which restores it.
  - Adapters do not act on the unconditional rows of classifier-free guidance. In the published code they act there at
    the positions of the rare word. The token mask is computed for each prompt.
  - Photos are cropped to their central square and resized by Lanczos (published: bilinear, and a random square unless
    `--center_crop` is given).
  - Prior preservation counts the class images once and aligns the photos' prompt alone (published: SD 1.5 counts them
    twice, and the class prompt's class word is aligned too).
- Boolean flags may have a value: `--focus`, `--focus true`, `--focus=false`. Flags may be abbreviated. An empty value
  means the default, and a backslash at the end of the command is ignored. Defaults are in square brackets.
- What is not available is replaced, with a note: fp16 and 8-bit AdamW without CUDA, a tracker that is not installed.
- `accelerate launch` trains in several processes; N of them correspond to N times the `--gradient_accumulation_steps`.
"""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from pydantic import BaseModel, TypeAdapter, ValidationError

from tara.cli.exit_codes import run_command
from tara.cli.generate import write_images
from tara.cli.options import Settings, of_model
from tara.cli.requests import MOST_SEEDS, pipeline_for, request_from_flags
from tara.cli.terminal import enable_unicode_streams, say
from tara.cli.train import train_with_progress
from tara.errors import TaraError, nearest, warn
from tara.families.base_names import SHORT_NAMES
from tara.families.settings import BaseSettings
from tara.inference.provenance import RequestProvenance
from tara.inference.settings import GenerationSettings
from tara.storage.hub import ADAPTER_FILE, is_hub_id, repository_name
from tara.storage.lock import folder_lock
from tara.storage.validation import build
from tara.training.concept_settings import ConceptSettings
from tara.training.distributed import launched
from tara.training.settings import Recipe, TrainSettings

# First what the script does, then one line a group:
# [ignored|refused] flag[marks][:setting][=value] ... # help (or the setting's own), or the reason
# fixed setting=value ... (what the published code implies)
# Marks: ! required, ? switch, @ path or hub id, / folder, + added here (not in the published parser).
# The value is the default; of a refused flag, what passes.
BASE = "pretrained_model_name_or_path!@:base variant+:variant"
TRAINING = f"""{BASE} revision:revision device+:device instance_data_dir!/:images instance_prompt:prompt
rare_word!:rare_word class_word!:class_word focus?:token_mask=false align_loss_weight:alignment_weight=1.0
max_train_steps:steps=1000
resolution:resolution train_batch_size:batch_size=1 gradient_accumulation_steps:gradient_accumulation_steps=1
mixed_precision:precision=no gradient_checkpointing?:gradient_checkpointing=false lr_scheduler:lr_scheduler=constant
lr_warmup_steps:lr_warmup_steps=0 max_grad_norm:max_grad_norm=1.0 seed:seed=0
with_prior_preservation?:prior_preservation=false prior_loss_weight:prior_loss_weight=1.0
num_class_images:num_class_images=100 class_data_dir:class_folder class_prompt:class_prompt
checkpointing_steps:checkpoint_every=500 validation_prompt:preview_prompt
num_validation_images:preview_images=4 push_to_hub?:push_to_hub=false hub_model_id:hub_model_id
output_dir! # output folder: {ADAPTER_FILE}, and a subfolder with checkpoints, previews and losses
with_align_loss?=false # token alignment loss between the rare word and the class word
scale_lr?=false # multiply the learning rate by batch size, accumulation steps and processes
use_8bit_adam?=false # 8-bit AdamW, if CUDA and bitsandbytes are available
report_to:report_to=none # none, tensorboard, wandb, or all: the first of them that is installed
hub_token # token for the hub; `hf auth login` is safer
refused resume_from_checkpoint=latest # training resumes from the newest checkpoint in --output_dir
ignored center_crop? # images are always cropped to their central square
ignored sample_batch_size prior_generation_precision # class images have the settings of all other images
ignored logging_dir allow_tf32? enable_xformers_memory_efficient_attention? local_rank # no equivalent is needed
refused lr_num_cycles=1 lr_power=1|1.0 adam_beta1=0.9 adam_beta2=0.999 adam_epsilon=1e-08|1e-8 # the value is fixed
refused train_text_encoder?=false # text encoders are not trained
refused num_train_epochs # training is counted in steps, --max_train_steps
fixed targets=attention captions=fixed flip=false init_lora_weights=gaussian alignment_subwords=each"""
SD = f"""Train an adapter for Stable Diffusion 1.5.
{TRAINING}
learning_rate:learning_rate=1e-4 adam_weight_decay:weight_decay=1e-2 lora_r:rank=8 lora_alpha:alpha=32
validation_steps:preview_every=100 wandb_project_name:project=tara
wandb_key # API key for wandb; `wandb login` is safer
ignored num_dataloader_workers no_tracemalloc? # no equivalent is needed
ignored lora_text_encoder_r lora_text_encoder_alpha # text encoders are not trained
ignored lora_text_encoder_dropout lora_text_encoder_bias # text encoders are not trained
refused use_lora!?=true # only adapters are trained
refused lora_dropout=0|0.0 lora_bias=none # adapters have neither dropout nor bias
refused tokenizer_name # the base model has its own tokenizer"""
SDXL = f"""Train an adapter for SDXL.
{TRAINING}
fixed size_conditioning=resolution
learning_rate:learning_rate adam_weight_decay:weight_decay=1e-4 optimizer:optimizer=AdamW rank:rank=8
validation_steps+:preview_every=100 snr_gamma:snr_gamma
freeze_lora_down?:freeze_down=false pretrained_vae_model_name_or_path@:vae
ignored dataloader_num_workers repeats checkpoints_total_limit reg_kl_weight # no equivalent is needed
ignored text_encoder_lr adam_weight_decay_text_encoder # text encoders are not trained
refused crops_coords_top_left_h=0 crops_coords_top_left_w=0 # the size conditioning describes whole photos
refused with_cross_attn_reg?=false # the paper's loss is --with_align_loss
refused validation_epochs # previews are counted in steps, --validation_steps
refused dataset_name dataset_config_name image_column=image caption_column # --instance_data_dir has images and captions
refused cache_dir # the environment variable HF_HUB_CACHE sets it
refused prodigy_decouple?=true prodigy_use_bias_correction?=true # the value is fixed
refused prodigy_safeguard_warmup?=true prodigy_beta3 # the value is fixed"""
GENERATION = f"""Generate images with adapters.
fixed context=prompt
{BASE} revision+:revision num_inference_steps+:steps=50 guidance_scale+:guidance_scale
negative_prompt+:negative_prompt height+:height width+:width
device+ # cuda, mps or cpu [default: the best one available]
lora_list! # JSON list of adapters (files, folders or hub ids); :0.8 after a name sets the adapter weight
rare_token_list # JSON list of their rare words; not needed for adapters that store their rare word
prompt! # prompt, with the rare words in it
output_folder=./output # folder for output_image_0.png, output_image_1.png, ...; numbering continues after existing ones
number=6 # number of images; their seeds are 0, 1, ..."""
YES, NO = ("yes", "true", "t", "1"), ("no", "false", "f", "0")  # as the published parsers read them


class Flag(NamedTuple):
    """A flag of a script: one entry of its table."""

    name: str
    marks: str
    setting: str
    value: str
    state: str
    about: str

    def check(self, typed: str) -> str:
        """The value, or the default in place of an empty one; argparse tells of one that cannot be."""
        fault, text = "", typed or (self.value if self.state == "" else "")
        if "?" in self.marks and text:
            fault = "" if text.lower() in YES + NO else "is refused; give true or false"
            text = "true" if text.lower() in YES else "false"
        if self.state == "refused" and text not in ("", *self.value.split("|")):
            fault = f"is refused: {self.about}; {f'give {self.value}' if self.value else 'leave it out'}"
        if ("@" in self.marks and not _may_exist(text)) or ("/" in self.marks and not Path(text).is_dir()):
            fault = "does not exist; check the path"
        if "!" in self.marks and not text:
            fault = f"is empty; give a value: {self.about}"
        if fault:
            raise argparse.ArgumentTypeError(f"'{typed}' {fault}")
        return text


def _may_exist(name: str) -> bool:
    """Whether a name is a path that exists, or may be a hub id."""
    return not name or name in SHORT_NAMES or is_hub_id(name) or Path(name).exists()


class Script(argparse.ArgumentParser):
    """One of the scripts at the repository's root, as its table describes it; every value stays text."""

    def __init__(
        self, file: str, table: str, models: tuple[type[BaseModel], ...], work: Callable[["Arguments"], None]
    ) -> None:
        purpose, *lines = table.splitlines()
        super().__init__(file, "python %(prog)s --flag value --switch ...", purpose)
        self.formatter_class = lambda prog: argparse.HelpFormatter(prog, max_help_position=36, width=110)
        self.file, self.models, self.work = file, models, work
        self.flags: list[Flag] = []
        self.fixed: dict[str, str] = {}
        descriptions = {name: field.description for model in models for name, field in model.model_fields.items()}
        for line in lines:
            state, entries, about = re.findall(r"(ignored|refused|fixed|) ?(.+?)(?: # (.+))?$", line)[0]
            for entry in entries.split():
                name, marks, setting, value = re.findall(r"(\w+)([!?@/+]*):?(\w*)=?(\S*)", entry)[0]
                if state == "fixed":
                    self.fixed[name] = value
                else:
                    self._add(Flag(name, marks, setting, value, state, about or descriptions[setting] or ""))

    def _add(self, flag: Flag) -> None:
        default, only = "" if flag.state else flag.value, f"only {flag.value}: " if flag.value else "refused: "
        before = {"": "", "ignored": "no effect: ", "refused": only}[flag.state]
        about = f"{before}{flag.about}{f' [{default}]' if default else ''}".replace("%", "%%")
        options: Any = {"nargs": "?", "const": "true"} if "?" in flag.marks else {}
        options |= {"default": default, "type": flag.check, "required": "!" in flag.marks, "help": about}
        self.add_argument(f"--{flag.name}", metavar="X", **options)
        self.flags.append(flag)

    def error(self, message: str) -> NoReturn:
        raise TaraError(f"{message.removeprefix('argument ')}. See `python {self.file} --help`.")

    def parse(self, tokens: Sequence[str]) -> "Arguments":
        """Parse a command line; a TaraError tells of a flag that is unknown, refused or missing."""
        while tokens and tokens[-1].strip() in ("", "\\"):  # what a backslash at the end of the command leaves
            tokens = tokens[:-1]
        published = [f"--{flag.name}" for flag in self.flags if "+" not in flag.marks]
        found, left = self.parse_known_args([_in_full(token, published) for token in tokens])
        if left:
            name = next((token for token in left if token.startswith("-")), left[0]).partition("=")[0]
            hint = nearest(name, [f"--{flag.name}" for flag in self.flags]) or " A value with spaces needs quotes."
            raise TaraError(f"{self.file} has no flag {name}.{hint} See `python {self.file} --help`.")
        return Arguments(self, vars(found))


class Arguments(NamedTuple):
    """A parsed command line: the text of every flag, or its default."""

    script: Script
    texts: dict[str, str]

    def settings(self, model: type[Settings], **fixed: Any) -> Settings:
        """Settings made of the flags that fill their fields and of fixed values; a TaraError names the flag."""
        names = {flag.setting: flag.name for flag in self.script.flags if flag.setting in model.model_fields}
        values = {setting: self.texts[name] for setting, name in names.items() if self.texts[name]}
        if values.get("precision") == "no":  # as diffusers' scripts call it
            values["precision"] = "fp32"
        try:
            return build(model, values | of_model(model, self.script.fixed) | fixed)
        except TaraError as failure:
            setting, _, reason = f"{failure} See `python {self.script.file} --help`.".partition(" ")
            reason = reason.replace(", but steps is", f", but --{names.get('steps')} is")
            raise TaraError(f"--{names.get(setting, setting)} {reason}") from None


def _in_full(token: str, published: Sequence[str]) -> str:
    """An abbreviated flag of the published parser in full: flags that were added here make no other one ambiguous."""
    name, equals, value = token.partition("=")
    meant = [flag for flag in published if name.startswith("--") and flag.startswith(name)]
    return f"{meant[0]}{equals}{value}" if len(meant) == 1 and name != "--" else token


def recipe_of(arguments: Arguments) -> Recipe:
    """The training that a command line describes; a TaraError names a flag whose value cannot be."""
    texts, output = arguments.texts, Path(arguments.texts["output_dir"])
    optimizer, tracker = texts.get("optimizer", "adamw").lower(), texts["report_to"]
    more: dict[str, Any] = {
        "alignment_loss": "l1" if texts["with_align_loss"] == "true" else "off",
        "optimizer": "adamw8bit" if (optimizer, texts["use_8bit_adam"]) == ("adamw", "true") else optimizer,
        "report_to": next(filter(find_spec, ("tensorboard", "wandb")), "none") if tracker == "all" else tracker,
        "preview_every": texts["validation_steps"] if texts["validation_prompt"] else 0,
    }
    if texts["lr_scheduler"] == "constant":
        more["lr_warmup_steps"] = 0
    if texts["push_to_hub"] == "true" and not texts["hub_model_id"]:
        more["hub_model_id"] = repository_name(output.absolute().name)
    settings = arguments.settings(TrainSettings, **more)
    if texts["scale_lr"] == "true":
        factor = settings.batch_size * settings.gradient_accumulation_steps * launched()
        settings = settings.model_copy(update={"learning_rate": settings.peak_learning_rate * factor})
    return Recipe(settings=settings, concepts=(arguments.settings(ConceptSettings, out=output / ADAPTER_FILE),))


def _available(arguments: Arguments, settings: TrainSettings) -> TrainSettings:
    """The settings with what this machine lacks replaced; a note tells of each flag that has not its own effect."""
    from tara.families.loading import best_device

    texts, cuda = arguments.texts, (settings.device or best_device()).startswith("cuda")
    ignored = [flag for flag in arguments.script.flags if flag.state == "ignored" and texts[flag.name]]
    notes = [f"--{flag.name} has no effect: {flag.about}" for flag in ignored]
    if texts["report_to"] == "all":
        notes.append(f"--report_to all: losses go to one tracker, here {settings.report_to}")
    if texts["lr_scheduler"] == "constant" and texts["lr_warmup_steps"] not in ("", "0"):
        notes.append("--lr_warmup_steps has no effect: a constant rate has no warm-up; constant_with_warmup has one")
    if settings.precision == "fp16" and not cuda:
        settings = settings.model_copy(update={"precision": "fp32"})
        notes.append("--mixed_precision fp16 needs CUDA; fp32 is used")
    if settings.optimizer == "adamw8bit" and not (cuda and find_spec("bitsandbytes")):
        settings = settings.model_copy(update={"optimizer": "adamw"})
        notes.append("--use_8bit_adam needs CUDA and the package bitsandbytes; AdamW is used")
    for note in notes:
        warn(f"{note}.")
    return settings


def train(arguments: Arguments) -> None:
    """Train the adapter that a command line describes."""
    from tara.core.tokens import word_spans

    texts, recipe = arguments.texts, recipe_of(arguments)
    (concept,) = recipe.concepts
    for flag in ("instance_prompt", "validation_prompt"):
        if texts[flag] and not word_spans(concept.fill(texts[flag]), concept.rare_word):
            raise TaraError(f"--{flag} '{texts[flag]}' lacks the rare word '{concept.rare_word}'. Write it in.")
    for flag, variable in (("wandb_key", "WANDB_API_KEY"), ("hub_token", "HF_TOKEN")):
        if texts.get(flag):
            os.environ[variable] = texts[flag]
    recipe = recipe.model_copy(update={"settings": _available(arguments, recipe.settings)})
    train_with_progress(recipe, resume=texts["resume_from_checkpoint"] == "latest", overwrite=False)
    say(f"{concept.file} acts on '{concept.rare_word} {concept.class_word}'.")


def request_of(arguments: Arguments) -> RequestProvenance:
    """The images that a command line asks for, with the adapters loaded; a TaraError tells what cannot be."""
    from tara.inference.active_adapter import check_named, split_options

    settings, base = arguments.settings(GenerationSettings), arguments.settings(BaseSettings)
    prompt, number = arguments.texts["prompt"], arguments.texts["number"]
    if not number.isdecimal() or not 1 <= int(number) <= MOST_SEEDS:
        raise TaraError(f"--number {number} is refused. Give 1 to {MOST_SEEDS}.")
    specs, words = _names(arguments, "lora_list"), _names(arguments, "rare_token_list")
    if words and len(words) != len(specs):
        raise TaraError(f"--rare_token_list has {len(words)} words for {len(specs)} adapters. Give one for each.")
    if missing := [spec for spec in specs if not _may_exist(split_options(spec)[0])]:
        raise TaraError(f"--lora_list: '{missing[0]}' does not exist. Check the path.")
    if words:
        specs = [_with_word(spec, word, prompt) for spec, word in zip(specs, words, strict=True)]
    seeds = f"0-{int(number) - 1}"
    request = request_from_flags(prompt, specs, seeds, base.model_dump() | settings.model_dump())
    check_named(request.request.adapters)
    return request


def _names(arguments: Arguments, flag: str) -> list[str]:
    """A JSON list of names; a plain name counts as a list of one."""
    text = arguments.texts[flag].strip()
    try:
        return TypeAdapter(list[str]).validate_json(text) if text.startswith("[") else [text] if text else []
    except ValidationError:
        raise TaraError(f"""--{flag} {text} is not a list of names. Write it like --{flag}='["a", "b"]'.""") from None


def _with_word(spec: str, word: str, prompt: str) -> str:
    """An adapter that does not store its words gets them from the list and the prompt."""
    from tara.inference.active_adapter import parse_adapter, split_options

    active = parse_adapter(spec)
    if active.rare_word and active.rare_word.casefold().split() != word.casefold().split():
        raise TaraError(f"--rare_token_list says '{word}', but {active.name} acts on '{active.rare_word}'. Correct it.")
    following = re.search(rf"(?<!\w){re.escape(word)}\s+([^\W\d_]+)", prompt, flags=re.IGNORECASE)
    options = f"rare_word={word}" + (f",class_word={following[1]}" if following else "")
    return spec if active.rare_word else f"{spec}{',' if split_options(spec)[1] else ':'}{options}"


def generate(arguments: Arguments) -> None:
    """Generate the images that a command line asks for."""
    provenance, folder = request_of(arguments), Path(arguments.texts["output_folder"])
    with folder_lock(folder):
        existing = (re.fullmatch(r"output_image_(\d+)\.png", path.name) for path in folder.iterdir())
        first = max((int(match[1]) for match in existing if match), default=-1) + 1  # images never replace images
        seeds = provenance.request.seeds
        paths = {seed: folder / f"output_image_{number}.png" for number, seed in enumerate(seeds, first)}
        pipeline = pipeline_for(provenance.base, arguments.texts["device"] or None)
        write_images(pipeline, provenance, paths)
    say(f"Images written to {folder}: output_image_{first}.png to output_image_{first + len(seeds) - 1}.png")


def run(script: Script, arguments: Sequence[str] | None = None) -> int:
    """Run a script; the exit code is 0, 2 after an error, 130 after Ctrl-C."""
    if arguments is None:
        enable_unicode_streams()
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    again = shlex.join(["python", script.file, *tokens])
    return run_command(lambda: script.work(script.parse(tokens)), again, distributed=script.work is train)


TRAINED, GENERATED = (ConceptSettings, TrainSettings), (BaseSettings, GenerationSettings)
SD_TRAINING = Script("train_dreambooth_tara_sd.py", SD, TRAINED, train)
SDXL_TRAINING = Script("train_dreambooth_tara_sdxl.py", SDXL, TRAINED, train)
INFERENCE = Script("inference_tara.py", GENERATION, GENERATED, generate)
SCRIPTS = (SD_TRAINING, SDXL_TRAINING, INFERENCE)
train_sdxl = partial(run, SDXL_TRAINING)  # the installed command train_dreambooth_tara_sdxl.py


def markdown() -> str:
    """The page about the scripts: this module's docstring and their help."""
    helps = [f"\n## `{script.file}`\n\n```text\n{script.format_help()}```\n" for script in SCRIPTS]
    return f"# The published scripts' commands\n\n{__doc__}" + "".join(helps)


if __name__ == "__main__":
    print(markdown(), end="")
