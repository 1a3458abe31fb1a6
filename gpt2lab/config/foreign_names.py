"""Names of settings in other projects (nanoGPT, build-nanogpt, llm.c, litgpt, transformers).

Messages about unknown settings use them (messages.py), and the translation of other projects' files (translation.py).
"""

# Setting by its name elsewhere. The values may need a conversion (translation.py).
NAMES = {
    name: setting
    for setting, names in {
        "checkpoint.every": "interval save_every save_interval save_steps checkpoint_every checkpoint_interval",
        "data.dir": "data_dir data_path dataset_dir dataset_path data input input_dir train_data",
        "data.source": "dataset dataset_name",
        "guard.spike_sigma": "spike_threshold",
        "model.block_size": "t seq_len seq_length sequence_length max_seq_len max_seq_length context context_length"
        " context_size n_ctx n_positions ctx_len",
        "model.tie_word_embeddings": "tie_embeddings tie_weights weight_tying",
        "model.n_embd": "n_embed d_model dim hidden_size hidden_dim embed_dim width",
        "model.n_head": "n_heads num_heads num_attention_heads",
        "model.n_layer": "n_layers num_layers num_hidden_layers layers depth",
        "model.size": "model_size model_name model_type model model_name_or_path",
        "optimizer.beta1": "beta_1 adam_beta1",
        "optimizer.beta2": "beta_2 adam_beta2",
        "optimizer.eps": "epsilon adam_eps adam_epsilon",
        "optimizer.grad_clip": "max_grad_norm max_norm clip clip_grad clip_grad_norm gradient_clip_val",
        "optimizer.max_lr": "lr learning_rate rate base_lr peak_lr",
        "optimizer.min_lr": "min_learning_rate final_lr end_lr lr_min",
        "optimizer.warmup_steps": "warmup warmup_iters num_warmup_steps lr_warmup_steps warmup_ratio warmup_tokens",
        "optimizer.weight_decay": "wd decay",
        "run.name": "run_name name experiment wandb_run_name exp_name",
        "run.out_dir": "output_dir output out save_dir log_dir",
        "run.resume": "resume_from resume_from_checkpoint",
        "run.seed": "random_seed manual_seed",
        "system.compile": "torch_compile use_compile",
        "system.precision": "dtype fp16 bf16 amp mixed_precision",
        "tracking.log_every": "log_interval logging_steps print_every log_steps",
        "tracking.project": "wandb_project",
        "tracking.wandb": "wandb_log use_wandb wandb_mode",
        "train.eval_every": "eval_interval eval_steps val_every val_interval val_loss_every",
        "train.eval_tokens": "eval_iters eval_max_iters eval_batches val_tokens val_max_steps val_loss_steps",
        "train.init_from": "init_from initial_checkpoint_dir pretrained pretrained_model pretrained_path"
        " from_pretrained finetune_from load_from load_checkpoint load_weights init_checkpoint init_weights weights",
        "train.max_steps": "max_iters steps iters iterations num_iterations num_steps max_iterations epochs num_epochs"
        " num_train_epochs total_steps max_tokens",
        "train.micro_batch_size": "b batch_size per_device_train_batch_size device_batch_size micro_batch",
        "train.sample_prompt": "prompt",
        "train.total_batch_size": "global_batch_size gradient_accumulation_steps accumulation accumulation_steps"
        " grad_accum grad_accum_steps total_batch batch_tokens tokens_per_step",
    }.items()
    for name in names.split()
}

# What to do about settings that have no equivalent here.
NO_COUNTERPART = {
    name: answer
    for answer, names in {
        "the models have no dropout, as is usual for one epoch; leave it out": "dropout dropout_rate dropout_p"
        " drop_rate attn_dropout resid_dropout embd_dropout attn_pdrop resid_pdrop embd_pdrop attention_dropout"
        " hidden_dropout",
        "all linear layers and norms have a bias, as in GPT-2; leave it out": "bias use_bias",
        "the learning rate always reaches optimizer.min_lr at train.max_steps; leave it out": "lr_decay_iters"
        " lr_decay_steps max_lr_steps decay_steps",
        "the learning rate always decays to optimizer.min_lr; for a constant rate, set that to optimizer.max_lr": ""
        "decay_lr",
        "use gpt2lab evaluate": "eval_only",
        "checkpoints are written every checkpoint.every steps, and the best is kept": "always_save_checkpoint",
        "the number of processes is that of torchrun; leave it out": "devices num_gpus n_gpus gpus world_size"
        " ddp_world_size num_nodes nnodes num_processes backend ddp use_ddp",
        "batches are read ahead without workers; leave it out": "num_workers dataloader_num_workers",
        "attention and optimizer use their fastest implementation; leave it out": "flash flash_attention"
        " use_flash_attention flash_attn use_flash fused use_fused use_fused_adamw",
        "the tokenizer is GPT-2's; leave it out": "tokenizer tokenizer_dir tokenizer_name tokenizer_path encoding",
        "see gpt2lab train --help, section tracking": "logger_name logger report_to",
        "train has --dry-run; sweep and scaling run have --print, which starts nothing": "dry_run",
    }.items()
    for name in names.split()
}

# Values of nanoGPT's train.py that a file of its config/ changes, and what its model has.
NANOGPT_DEFAULTS = {
    "gradient_accumulation_steps": 40,
    "batch_size": 12,
    "block_size": 1024,
    "vocab_size": 50304,
    "activation": "gelu",
    "learning_rate": 6e-4,
    "max_iters": 600_000,
    "weight_decay": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "grad_clip": 1.0,
    "warmup_iters": 2000,
    "min_lr": 6e-5,
    "eval_interval": 2000,
    "eval_iters": 200,
    "dataset": "openwebtext",
}
# A file with one of these, and no code, is one of nanoGPT's.
NANOGPT_ONLY = {"max_iters", "lr_decay_iters", "eval_interval", "eval_iters", "init_from", "wandb_log", "decay_lr"}
