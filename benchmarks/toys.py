"""Small models, data and settings that the scenarios share."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = [
    "<pad>",
    "<unk>",
    "<s>",
    "</s>",
    "the",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "mat",
    "road",
    "and",
    "was",
    "happy",
    "sad",
    "very",
    "good",
    "bad",
    "not",
    "it",
    "is",
    "a",
]


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template="{% for m in messages %}{{ m['content'] }} </s> {% endfor %}",
    )


def causal(labels: int = 0):
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        max_position_embeddings=64,
    )
    if labels:
        config.num_labels = labels
        return LlamaForSequenceClassification(config)
    return LlamaForCausalLM(config)


def lora(**changes):
    from peft import LoraConfig

    fields = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    return LoraConfig(**{**fields, **changes})


def same_start(model):
    """The same numbers in the same adapter, whichever library made it."""
    a_parts = b_parts = 0
    for name, parameter in model.named_parameters():
        kind = next((k for k in ("lora_A", "lora_B") if k in name), None)
        if kind is None or ".ref." in name:
            continue
        generator = torch.Generator().manual_seed(
            1000 * (kind == "lora_B") + (b_parts if kind == "lora_B" else a_parts)
        )
        a_parts, b_parts = a_parts + (kind == "lora_A"), b_parts + (kind == "lora_B")
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    assert a_parts == b_parts > 0
    return model


def settings(cls, folder, **changes):
    fields = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "seed": 0,
        "bf16": False,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return cls(**{**fields, **changes})


def start_callback():
    from transformers import TrainerCallback

    class Start(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            same_start(model)

    return Start()


def losses(trainer, key="loss"):
    return {f"{key}@{i}": row[key] for i, row in enumerate(r for r in trainer.state.log_history if key in r)}


def adapter_size(folder):
    from safetensors import safe_open

    with safe_open(Path(folder) / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
        return {"tensors": len(names), "sum": sum(float(file.get_tensor(k).abs().sum()) for k in names)}


def texts():
    return [
        "the cat sat on the mat",
        "the dog ran on the road",
        "it was very good",
        "it is not bad and the cat is happy",
        "the dog was sad",
        "a dog sat on a mat",
        "the cat ran and ran",
        "it is a very bad road",
    ]


def preferences():
    from datasets import Dataset

    rows = [
        {"prompt": "the cat was", "chosen": " very happy", "rejected": " very bad"},
        {"prompt": "the dog is", "chosen": " good", "rejected": " not good"},
        {"prompt": "it was", "chosen": " a good mat", "rejected": " a sad road"},
        {"prompt": "a dog", "chosen": " sat on the mat", "rejected": " is bad"},
    ]
    return Dataset.from_list(rows)


def same_files(*folders):
    """Both libraries start from the same random numbers, in the files' order of names."""
    from safetensors.torch import load_file, save_file

    for i, folder in enumerate(folders):
        path = next(Path(folder).glob("*.safetensors"))
        tensors = load_file(path)
        generator = torch.Generator().manual_seed(i)
        save_file(
            {k: torch.randn(tensors[k].shape, generator=generator) * 0.3 for k in sorted(tensors)},
            path,
            {"format": "pt"},
        )


def pipeline():
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=16,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = AutoencoderKL(block_out_channels=[8], norm_num_groups=4, latent_channels=4)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            eos_token_id=3,
            bos_token_id=2,
        )
    )
    words = tokenizer()
    words.model_max_length = 16
    pipe = StableDiffusionPipeline(vae, text, words, unet, DDIMScheduler(), None, None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe):
    image = pipe(
        "the cat sat",
        num_inference_steps=2,
        height=8,
        width=8,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).images
    return float(image.double().abs().sum())
