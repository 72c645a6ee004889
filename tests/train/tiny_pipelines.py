"""Random pipelines of diffusers that make images of 8 x 8 pixels, and images with captions for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from afina.train.base.pipelines.made_pipelines import byte_tokenizer, identity_vae, made
from afina.train.report.events import Reporter


def write_sd(folder: Path) -> Path:
    shutil.copytree(made("tiny-sd", Reporter()), folder, dirs_exist_ok=True)
    return folder


def _text(kind, width, vocabulary):
    from transformers import CLIPTextConfig

    return kind(CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=width, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, initializer_factor=3.0, bos_token_id=512, eos_token_id=513, pad_token_id=513,
        projection_dim=8,
    ))  # fmt: skip


def write_sdxl(folder: Path) -> Path:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(folder)
    texts = [_text(kind, 16, len(tokenizer)) for kind in (CLIPTextModel, CLIPTextModelWithProjection)]
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, attention_head_dim=(1, 2, 2), use_linear_projection=True, cross_attention_dim=32,
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=6 * 4 + 8,
        transformer_layers_per_block=(1, 1, 2),
    )  # fmt: skip
    noise = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                   prediction_type="v_prediction")  # fmt: skip
    StableDiffusionXLPipeline(
        vae=identity_vae(), text_encoder=texts[0], text_encoder_2=texts[1], tokenizer=tokenizer, tokenizer_2=tokenizer,
        unet=unet, scheduler=noise,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def write_flux(folder: Path) -> Path:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(folder)
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((letter, -1.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"),
    ]
    other = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=16)
    sizes = {"d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    FluxPipeline(
        vae=AutoencoderKL(in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8,), norm_num_groups=4,
                          layers_per_block=1, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1),
        text_encoder=_text(CLIPTextModel, 16, len(tokenizer)), tokenizer=tokenizer, tokenizer_2=other,
        text_encoder_2=T5EncoderModel(T5Config(vocab_size=len(other), **sizes, initializer_factor=3.0)),
        transformer=FluxTransformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=24, pooled_projection_dim=16, guidance_embeds=True, axes_dims_rope=(2, 2, 4),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def write_images(folder: Path, count: int = 8) -> Path:
    """Red and blue images with metadata as scripts of diffusers have it."""
    from PIL import Image

    folder.mkdir(exist_ok=True)
    rows = []
    for i in range(count):
        level, name = 150 + 5 * i, "blue" if i % 2 else "red"
        Image.new("RGB", (12, 8), (0, 0, level) if i % 2 else (level, 0, 0)).save(folder / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": f"a {name} wall"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
