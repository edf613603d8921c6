"""The published commands word for word, and the words that a shell makes of them."""

import subprocess
from collections.abc import Mapping

TRAIN_SD = r"""
    --pretrained_model_name_or_path="stabilityai/stable-diffusion-v1-5" \
    --instance_data_dir="path/to/your/images" \
    --instance_prompt="a photo of <rare_token> <class_word>" \
    --output_dir="path/to/save/lora" \
    --use_lora \
    --train_batch_size=1 \
    --max_train_steps=1000 \
    --learning_rate=1e-4 \
    --resolution=512 \
    --gradient_accumulation_steps=1 \
    --gradient_checkpointing \
    --rare_word="<rare_token>" \
    --class_word="<class_word>" \
    --focus true \
    --with_align_loss true \
    --align_loss_weight=1.0
"""
TRAIN_SDXL = r"""
    --pretrained_model_name_or_path="stabilityai/stable-diffusion-xl-base-1.0" \
    --instance_data_dir="path/to/your/images" \
    --output_dir="path/to/save/lora" \
    --instance_prompt="a photo of <rare_token> <class_word>" \
    --rank=8 \
    --resolution=1024 \
    --train_batch_size=1 \
    --learning_rate=5e-5 \
    --report_to="wandb" \
    --lr_scheduler="constant" \
    --lr_warmup_steps=0 \
    --max_train_steps=1000 \
    --seed=$SEED \
    --mixed_precision="fp16" \
    --gradient_checkpointing \
    --use_8bit_adam \
    --rare_word="<rare_token>" \
    --class_word="<class_word>" \
    --focus="true"  \
    --with_align_loss="true"  \
    --align_loss_weight=1.0 \
"""
DRAW_TWO = r"""
  --pretrained_model_name_or_path="stabilityai/stable-diffusion-v1-5" \
  --lora_list='["path/to/lora1.safetensors", "path/to/lora2.safetensors"]' \
  --rare_token_list='["xlo", "szn"]' \
  --prompt="A xlo dog and a szn cat" \
  --output_folder="./output" \
  --number=4
"""
QUICK = {"--max_train_steps=1000": "--max_train_steps=2", "=512": "=32", "=1024": "=32"}


def typed(command: str, replaced: Mapping[str, object], *more: str) -> list[str]:
    """The words that a shell makes of a command, with parts of its text replaced."""
    for part, new in (QUICK | dict(replaced)).items():
        command = command.replace(part, str(new))
    shell = f'set -- {command.lstrip()}\nprintf "%s\\0" "$@"'
    found = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    return [*found.stdout.split("\0")[:-1], *more]
