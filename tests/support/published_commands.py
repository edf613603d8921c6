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
GENERATE_TWO = r"""
  --pretrained_model_name_or_path="stabilityai/stable-diffusion-v1-5" \
  --lora_list='["path/to/lora1.safetensors", "path/to/lora2.safetensors"]' \
  --rare_token_list='["xlo", "szn"]' \
  --prompt="A xlo dog and a szn cat" \
  --output_folder="./output" \
  --number=4
"""
# the flags of the published scripts' own parsers
PARSER = """
    pretrained_model_name_or_path revision instance_data_dir class_data_dir instance_prompt class_prompt
    with_prior_preservation prior_loss_weight num_class_images validation_prompt num_validation_images output_dir seed
    resolution center_crop train_text_encoder train_batch_size sample_batch_size num_train_epochs max_train_steps
    checkpointing_steps resume_from_checkpoint gradient_accumulation_steps gradient_checkpointing learning_rate scale_lr
    lr_scheduler lr_warmup_steps lr_num_cycles lr_power use_8bit_adam adam_beta1 adam_beta2 adam_weight_decay
    adam_epsilon max_grad_norm push_to_hub hub_token hub_model_id logging_dir allow_tf32 report_to mixed_precision
    prior_generation_precision local_rank enable_xformers_memory_efficient_attention
    rare_word class_word focus with_align_loss align_loss_weight
"""
SD_PARSER = f"""{PARSER} tokenizer_name validation_steps use_lora lora_r lora_alpha lora_dropout lora_bias
    lora_text_encoder_r lora_text_encoder_alpha lora_text_encoder_dropout lora_text_encoder_bias num_dataloader_workers
    no_tracemalloc wandb_key wandb_project_name
"""
SDXL_PARSER = f"""{PARSER} with_cross_attn_reg reg_kl_weight pretrained_vae_model_name_or_path dataset_name
    dataset_config_name cache_dir image_column caption_column repeats validation_epochs crops_coords_top_left_h
    crops_coords_top_left_w checkpoints_total_limit text_encoder_lr snr_gamma dataloader_num_workers optimizer
    freeze_lora_down prodigy_beta3 prodigy_decouple adam_weight_decay_text_encoder prodigy_use_bias_correction
    prodigy_safeguard_warmup rank
"""
INFERENCE_PARSER = "pretrained_model_name_or_path lora_list rare_token_list number output_folder prompt"
# flags of ours beside them
SD_ADDED = {"device", "variant"}
SDXL_ADDED = {*SD_ADDED, "validation_steps"}
INFERENCE_ADDED = {"device", "revision", "variant", "num_inference_steps", "guidance_scale", "negative_prompt"}
INFERENCE_ADDED |= {"height", "width"}
QUICK = {"--max_train_steps=1000": "--max_train_steps=2", "=512": "=32", "=1024": "=32"}


def typed(command: str, replaced: Mapping[str, object], *more: str) -> list[str]:
    """The words that a shell makes of a command, with parts of its text replaced."""
    for part, new in (QUICK | dict(replaced)).items():
        command = command.replace(part, str(new))
    shell = f'set -- {command.lstrip()}\nprintf "%s\\0" "$@"'
    found = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    return [*found.stdout.split("\0")[:-1], *more]
