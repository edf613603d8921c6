"""Every flag of the three published scripts: what it sets here, or why it has no effect, or why it is refused.

The scripts, their ``--help`` and docs/seed-commands.md are all made of these tables.
"""

from tara.cli.published.flag import Flag, accepted, refused, switch

BASE = (
    Flag(
        name="pretrained_model_name_or_path",
        about="base: a hub id, a pipeline folder, a .safetensors checkpoint, or sd15, sdxl, toyland",
        setting="base",
        needed=True,
    ),
    Flag(name="revision", about="branch, tag or commit of the base on the hub", setting="revision", origin="diffusers"),
    Flag(name="variant", about="variant of the base's files, such as fp16", setting="variant", origin="diffusers"),
    Flag(
        name="pretrained_vae_model_name_or_path",
        about="autoencoder in place of the base's own",
        setting="vae",
        origin="diffusers",
    ),
    Flag(
        name="prediction_type",
        about="epsilon or v_prediction, where a checkpoint does not tell what its U-Net predicts",
        setting="prediction_type",
        origin="tara",
    ),
    Flag(name="device", about="cuda, mps or cpu; the best one found if left out", setting="device", origin="tara"),
)

CONCEPT = (
    Flag(name="instance_data_dir", about="folder with the concept's photos", setting="images", needed=True),
    Flag(name="instance_prompt", about="training phrase, with the rare word and the class word", setting="prompt"),
    Flag(name="rare_word", about="rare word that stands for the concept, such as xlo", setting="word", needed=True),
    Flag(name="class_word", about="ordinary word for what it is, such as dog", setting="kind", needed=True),
    Flag(name="output_dir", about="folder for pytorch_lora_weights.safetensors; all else in subfolders", needed=True),
)

METHOD = (
    switch("focus", "token focus mask: the adapter acts on its rare word alone", "token_mask"),
    switch("with_align_loss", "token alignment loss between rare word and class word"),
    Flag(name="align_loss_weight", about="weight of that loss", setting="alignment_weight", default="1.0"),
)

OPTIMISATION = (
    Flag(name="max_train_steps", about="optimiser steps", setting="steps", default="1000"),
    Flag(name="resolution", about="side of the training pictures; the base's own if left out", setting="resolution"),
    Flag(name="train_batch_size", about="photos in one U-Net call", setting="batch_size", default="1"),
    Flag(
        name="gradient_accumulation_steps",
        about="U-Net calls whose gradients one step sums up",
        setting="gradient_accumulation_steps",
        default="1",
    ),
    switch("gradient_checkpointing", "less memory, more time", "gradient_checkpointing"),
    Flag(name="lr_scheduler", about="course of the learning rate", setting="lr_scheduler", default="constant"),
    Flag(
        name="lr_warmup_steps",
        about="steps in which the learning rate rises, also with a constant one",
        setting="lr_warmup_steps",
        default="0",
    ),
    switch(
        "scale_lr",
        "multiply the learning rate with batch size, accumulation steps and launched processes",
        origin="diffusers",
    ),
    switch("use_8bit_adam", "8-bit AdamW; AdamW where there is no CUDA or no bitsandbytes, with a note"),
    Flag(name="optimizer", about="AdamW or prodigy", default="adamw", origin="diffusers"),
    Flag(name="adam_weight_decay", about="weight decay", setting="weight_decay", default="1e-2", origin="diffusers"),
    Flag(name="max_grad_norm", about="longest gradient", setting="max_grad_norm", default="1.0", origin="diffusers"),
    Flag(
        name="mixed_precision",
        about="no, fp16, bf16 or auto; fp16 needs CUDA and is float32 elsewhere, with a note",
        setting="precision",
        default="no",
    ),
    Flag(name="snr_gamma", about="Min-SNR weighting with this gamma", setting="snr_gamma"),
    Flag(name="seed", about="seed of everything that chance decides", setting="seed", default="0"),
    switch("random_flip", "also train on mirror images", "flip", origin="diffusers"),
)

RUN = (
    switch("with_prior_preservation", "train on pictures of the class too", "prior_preservation"),
    Flag(
        name="class_data_dir",
        about="folder of class pictures, or of one subfolder a class; missing ones are drawn",
        setting="class_folder",
    ),
    Flag(name="class_prompt", about="prompt of the class pictures", setting="class_prompt"),
    Flag(name="num_class_images", about="number of class pictures", setting="num_class_images", default="100"),
    Flag(name="prior_loss_weight", about="weight of their loss", setting="prior_loss_weight", default="1.0"),
    Flag(name="validation_prompt", about="prompt of previews, with the rare word in it", setting="preview_prompt"),
    Flag(name="validation_steps", about="steps between previews, if there is a prompt", kind="whole", default="100"),
    Flag(name="num_validation_images", about="pictures in a preview", setting="preview_images", default="4"),
    Flag(
        name="checkpointing_steps",
        about="steps between checkpoints",
        setting="checkpoint_every",
        default="500",
        origin="diffusers",
    ),
    Flag(name="resume_from_checkpoint", about="latest, or the newest checkpoint in --output_dir: go on from there"),
    Flag(
        name="report_to",
        about="none, tensorboard or wandb; one that is not there is a note, not a failure",
        setting="report_to",
        default="none",
    ),
    Flag(name="wandb_key", about="key of the wandb account, better left to `wandb login`"),
    Flag(name="wandb_project_name", about="the tracker's project", setting="project", default="tara"),
    switch("push_to_hub", "upload adapter, pictures and a model card when all is done", "push_to_hub", "diffusers"),
    Flag(
        name="hub_model_id",
        about="repository to upload to, name or owner/name; called as --output_dir if left out",
        setting="hub_model_id",
        origin="diffusers",
    ),
    Flag(name="hub_token", about="token of the hub account, better left to `hf auth login`", origin="diffusers"),
)

WORKERS = "photos are encoded once, before the first step"
DROPOUT = "adapters are trained without dropout; against overfitting, take fewer steps"
SD_ONLY = (
    switch("use_lora", "needed: adapters are all that is trained here"),
    Flag(name="learning_rate", about="learning rate", setting="learning_rate", default="1e-4"),
    Flag(name="lora_r", about="rank", setting="rank", default="8"),
    Flag(name="lora_alpha", about="scale times rank, stored and applied", setting="alpha", default="32"),
    Flag(name="rank", about="rank, as --lora_r", setting="rank", origin="diffusers"),
    accepted("lora_dropout", DROPOUT, "0", origin="published"),
    accepted(
        "lora_bias",
        "biases act on every token, masked or not, and an adapter's file has none",
        "none",
        origin="published",
    ),
    *(
        accepted(f"lora_text_encoder_{part}", "the text encoder stays frozen", origin="published")
        for part in ("r", "alpha", "dropout", "bias")
    ),
    accepted("num_dataloader_workers", WORKERS, origin="published"),
    accepted("no_tracemalloc", "memory is not traced", kind="switch", origin="published"),
)

SDXL_ONLY = (
    Flag(name="learning_rate", about="learning rate", setting="learning_rate", default="5e-5"),
    Flag(name="rank", about="rank", setting="rank", default="8"),
    Flag(name="lora_alpha", about="scale times rank; scale 1 if left out", setting="alpha", origin="diffusers"),
    accepted("lora_dropout", DROPOUT, "0"),
    refused(
        "with_cross_attn_reg",
        "a loss on attention maps, which the paper does not have: --with_align_loss aligns the words; leave it out",
        "false",
        kind="switch",
        origin="published",
    ),
    accepted("reg_kl_weight", "it weights --with_cross_attn_reg, which is refused", origin="published"),
    switch("freeze_lora_down", "only the up matrices learn; the down matrices stay as drawn", "freeze_down"),
    *(
        accepted(f"crops_coords_top_left_{side}", "SDXL is told where each crop really lies", origin="published")
        for side in "hw"
    ),
    accepted("text_encoder_lr", "the text encoders stay frozen"),
)

OF_DIFFUSERS = (
    refused("train_text_encoder", "the text encoder stays frozen; leave it out", "false", kind="switch"),
    refused("num_train_epochs", "steps are counted, not rounds; give --max_train_steps"),
    refused("validation_epochs", "steps are counted, not rounds; give --validation_steps"),
    refused("dataset_name", "photos come from a folder; give --instance_data_dir"),
    refused("dataset_config_name", "photos come from a folder; give --instance_data_dir"),
    refused("image_column", "photos come from a folder; give --instance_data_dir"),
    refused("caption_column", "captions come from .txt files or metadata.jsonl in --instance_data_dir"),
    refused("validation_images", "previews start from noise; leave it out"),
    refused("tokenizer_name", "a base brings its tokenizer; leave it out"),
    refused("tokenizer_max_length", "a base's tokenizer knows its length; leave it out"),
    refused("cache_dir", "set the environment variable HF_HUB_CACHE instead"),
    refused("use_dora", "DoRA cannot be masked by token; leave it out", "false", kind="switch"),
    refused("do_edm_style_training", "bases are epsilon or v prediction; leave it out", "false", kind="switch"),
    refused("output_kohya_format", "convert the finished file instead; leave it out", "false", kind="switch"),
    refused("class_labels_conditioning", "bases with class labels are not supported; leave it out"),
    refused("text_encoder_use_attention_mask", "the base's own way is kept; leave it out", "false", kind="switch"),
    refused("offset_noise", "noise is plain; leave it out", "false", kind="switch"),
    refused("lora_layers", "the published scripts' layers are trained; use `tara train --targets` for others"),
    accepted("dataloader_num_workers", WORKERS),
    accepted("logging_dir", "losses are written to the run's own subfolder"),
    accepted("checkpoints_total_limit", "the last two checkpoints are kept"),
    accepted("repeats", "photos come round as often as the steps need"),
    accepted("center_crop", "a photo's central square is what is trained on", kind="switch"),
    accepted("image_interpolation_mode", "photos are resized by Lanczos' filter", "lanczos"),
    accepted("sample_batch_size", "class pictures are the same in any batch"),
    accepted("prior_generation_precision", "class pictures are drawn in the base's precision"),
    accepted("pre_compute_text_embeddings", "captions are always encoded once", kind="switch"),
    accepted("allow_tf32", "torch's own choice stands", kind="switch"),
    accepted("enable_xformers_memory_efficient_attention", "torch's own attention does this", kind="switch"),
    accepted("enable_npu_flash_attention", "torch's own attention does this", kind="switch"),
    accepted("set_grads_to_none", "gradients are always set to none", kind="switch"),
    accepted("local_rank", "the launcher tells"),
    accepted("lr_num_cycles", "cosine_with_restarts has one cycle", "1"),
    accepted("lr_power", "polynomial falls along a line", "1"),
    accepted("adam_beta1", "AdamW's usual value is used", "0.9"),
    accepted("adam_beta2", "AdamW's usual value is used", "0.999"),
    accepted("adam_epsilon", "AdamW's usual value is used", "1e-08"),
    accepted("adam_weight_decay_text_encoder", "the text encoders stay frozen"),
    refused("prodigy_beta3", "Prodigy's own choice is used; leave it out"),
    *(
        accepted(f"prodigy_{name}", "Prodigy is always used so", "true", kind="switch")
        for name in ("decouple", "use_bias_correction", "safeguard_warmup")
    ),
)

DRAWING = (
    Flag(
        name="lora_list",
        about="adapters as a JSON list: files, folders or hub ids, each with options such as :0.8 behind it",
        needed=True,
    ),
    Flag(name="rare_token_list", about="their rare words as a JSON list, checked against what the files say"),
    Flag(name="prompt", about="what to draw, with the rare words in it", needed=True),
    Flag(name="output_folder", about="folder for output_image_0.png, output_image_1.png, ...", default="./output"),
    Flag(name="number", about="number of pictures, of the seeds 0, 1, ...", kind="whole", default="6"),
    Flag(name="num_inference_steps", about="denoising steps", setting="steps", default="50", origin="tara"),
    Flag(
        name="guidance_scale",
        about="guidance scale; the base's own if left out",
        setting="guidance_scale",
        origin="tara",
    ),
    Flag(name="negative_prompt", about="what to keep away from", setting="negative_prompt", origin="tara"),
    Flag(name="height", about="in pixels; the base's own if left out", setting="height", origin="tara"),
    Flag(name="width", about="in pixels; the base's own if left out", setting="width", origin="tara"),
)

_TRAINING = (*BASE, *CONCEPT, *METHOD, *OPTIMISATION, *RUN)

SD_TRAINING = (*_TRAINING, *SD_ONLY, *OF_DIFFUSERS)
SDXL_TRAINING = (*_TRAINING, *SDXL_ONLY, *OF_DIFFUSERS)
INFERENCE = (*BASE, *DRAWING)
