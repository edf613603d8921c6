"""Flags of kohya's and diffusers' scripts, and what this command line has in their place."""

# ours: theirs
TRAIN = {
    "--base": "pretrained_model_name_or_path",
    "--vae": "pretrained_vae_model_name_or_path",
    "--prediction-type v_prediction": "v_parameterization",
    "--images": "instance_data_dir",
    "--images FOLDER, also with subfolders such as '10_xlo dog'": "train_data_dir",
    "--masked-loss --masks": "conditioning_data_dir",
    "--rare-word": "trigger_word token",
    "--prompt": "instance_prompt",
    "--prior-preservation": "with_prior_preservation",
    "--prior-preservation --class-folder": "class_data_dir reg_data_dir",
    "--out FILE.safetensors": "output_dir output_name",
    "--rank": "network_dim lora_r",
    "--alpha": "network_alpha lora_alpha",
    "--steps": "max_train_steps",
    "--steps: training is counted in steps, not in epochs": "num_train_epochs max_train_epochs",
    "--batch-size": "train_batch_size",
    "--learning-rate": "unet_lr lr",
    "--lr-warmup-steps": "lr_warmup",
    "--optimizer": "optimizer_type",
    "--optimizer adamw8bit": "use_8bit_adam",
    "--precision": "mixed_precision",
    "--snr-gamma": "min_snr_gamma",
    "--buckets": "enable_bucket",
    "--flip, which is on": "flip_aug random_flip",
    "--shuffle-tags": "shuffle_caption",
    "--keep-tags": "keep_tokens",
    "--caption-dropout": "caption_dropout_rate",
    "--preview-every": "sample_every_n_steps validation_steps",
    "--preview-prompt": "sample_prompts validation_prompt",
    "--save-every": "save_every_n_steps",
    "--save-every, which counts steps": "save_every_n_epochs",
    "--checkpoint-every": "checkpointing_steps save_state save_last_n_steps",
    "--resume": "resume_from_checkpoint",
    "--report-to": "log_with",
    "nothing: text encoders are not trained": "text_encoder_lr train_text_encoder",
    "nothing: .txt and .caption files beside the photos are read": "caption_extension",
    "nothing: latents are always cached": "cache_latents",
    "nothing: they are always cached": "cache_text_encoder_outputs",
    "nothing: PyTorch's attention is used": "xformers enable_xformers_memory_efficient_attention",
    "nothing: only LoRA is trained, see --targets": "network_module",
}
GENERATE = {
    "--base": "pretrained_model_name_or_path ckpt model",
    "--adapter FILE, or -a FILE:0.8 with a weight": "lora lora_weights network_weights",
    "-a FILE:0.8": "network_mul lora_scale",
    'the prompt behind the command, without a flag: "a xlo dog on a beach"': "prompt",
    "--negative-prompt": "negative",
    "--steps": "num_inference_steps ddim_steps",
    "--guidance-scale": "guidance cfg_scale scale",
    "--scheduler": "sampler",
    "--seeds": "seed",
    "--seeds 0-3, one image for each seed": "num_images_per_prompt num_images images_per_prompt n_samples",
    "--out": "output_dir outdir",
    "--width": "w",
    "--height": "h",
    "--image": "init_image",
    "--mask": "mask_image",
    "--clip-skip": "clip_skip",
    "--offload": "enable_model_cpu_offload",
}
NAMES = {"train": TRAIN} | dict.fromkeys(("generate", "compare", "attention", "evaluate"), GENERATE)


def our_flag(command: str, option: str) -> str:
    """What a command has in place of another tool's flag, empty where nothing is known."""
    name = option.split("=")[0].lstrip("-").lower().replace("-", "_")
    return next((ours for ours, theirs in NAMES.get(command, {}).items() if name in theirs.split()), "")
