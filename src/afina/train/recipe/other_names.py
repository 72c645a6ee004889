"""What other tools call our settings."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "base_model": "model.path",
        "model_name_or_path": "model.path",
        "torch_dtype": "model.dtype",
        "dataset": "data.train",
        "train_file": "data.train",
        "validation_file": "data.eval",
        "eval_file": "data.eval",
        "val_size": "data.eval_split",
        "val_set_size": "data.eval_split",
        "split_dataset_ratio": "data.eval_split",
        "chat_template": "data.chat_template",
        "train_on_inputs": "training.loss_on_prompt",
        "cutoff_len": "data.max_length",
        "max_seq_len": "data.max_length",
        "max_seq_length": "data.max_length",
        "sequence_len": "data.max_length",
        "max_samples": "data.max_train_rows",
        "max_train_samples": "data.max_train_rows",
        "max_eval_samples": "data.max_eval_rows",
        "instance_data_dir": "data.train",
        "class_data_dir": "data.class_images",
        "num_class_images": "data.class_count",
        "prior_loss_weight": "diffusion.prior_weight",
        "resolution": "model.image_size",
        "adapter": "method.type",
        "peft_type": "method.type",
        "finetuning_type": "method.type",
        "lora_r": "method.r",
        "lora_rank": "method.r",
        "lora_alpha": "method.lora_alpha",
        "lora_dropout": "method.lora_dropout",
        "lora_target": "method.target_modules",
        "lora_target_modules": "method.target_modules",
        "target_modules": "method.target_modules",
        "modules_to_save": "method.modules_to_save",
        "lr": "training.learning_rate",
        "batch_size": "training.batch_size",
        "micro_batch_size": "training.batch_size",
        "per_device_train_batch_size": "training.batch_size",
        "gradient_accumulation_steps": "training.gradient_accumulation",
        "num_epochs": "training.epochs",
        "num_train_epochs": "training.epochs",
        "lr_scheduler": "training.scheduler",
        "lr_scheduler_type": "training.scheduler",
        "warmup_ratio": "training.warmup",
        "warmup_steps": "training.warmup",
        "optim": "training.optimizer",
        "sample_packing": "training.packing",
        "pref_beta": "training.beta",
        "save_total_limit": "training.keep_checkpoints",
        "dataloader_num_workers": "training.workers",
        "per_device_eval_batch_size": "evaluation.batch_size",
        "eval_batch_size": "evaluation.batch_size",
        "output_dir": "output.dir",
    }
)
"""What means the same under another name, and is taken as it stands."""

VALUES: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("method.type", "qlora"): "method: lora, with model.quantize: nf4",
        ("method.type", "freeze"): "method: last_layers trains the last layers",
        ("method.target_modules", "all"): "target_modules: all-linear",
    }
)
"""Values that mean something to another tool, and how that is said here."""
