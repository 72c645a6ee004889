"""The runs of pipelines of diffusers that the plan is held to: their architectures with fewer channels, random."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Drawing:
    """A run on images with captions.

    Attributes:
        kind: sd, sdxl, flux; or `digits`: the recipe `handwriting` with its own pipeline and rows.
        side: pixels of an image.
        settings: the recipe's own, `section__key`.
    """

    kind: str = "sd"
    side: int = 256
    rows: int = 1
    method: dict[str, Any] = field(default_factory=lambda: {"type": "lora", "r": 8})
    settings: dict[str, Any] = field(default_factory=dict)


_CHECK = {"training__gradient_checkpointing": True}
_BF16 = {"model__dtype": "bfloat16"}
_ALL = {"type": "lora", "r": 8, "target_modules": "all-linear"}
_CONVS = {"type": "lora", "r": 8, "target_modules": ["conv1", "conv2", "to_q", "to_v"]}
_CLASS = {"data__instance_prompt": "a photo of sks dog", "data__class_prompt": "a photo of a dog"}
DRAWINGS = {
    "sd": Drawing(),
    "sd, 4 rows of 128 pixels": Drawing(side=128, rows=4),
    "sd, all linear layers": Drawing(method=_ALL),
    "sd, convolutions": Drawing(method=_CONVS),
    "sd, recomputed": Drawing(settings=_CHECK),
    "sd, bf16": Drawing(settings=_BF16),
    "sd, text encoder too": Drawing(settings={"model__train_text_encoder": True}),
    "sd, DreamBooth": Drawing(settings=_CLASS),
    "sd, full": Drawing(side=128, method={"type": "full"}),
    "sdxl": Drawing("sdxl"),
    "flux": Drawing("flux"),
    "flux, bf16, recomputed": Drawing("flux", settings={**_BF16, **_CHECK}),
    "handwriting": Drawing("digits", 8, 32, {"type": "full"}),
}


def write(case: Drawing, folder: Path, *, tiny: bool) -> Path:
    """The recipe of a case with its pipeline and images in a folder, or of a tiny run of the same kind."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    side, steps = (64 if tiny and case.side > 64 else case.side), 2 if tiny else 6
    rows = 2 if tiny else case.rows
    path = "embedded:tiny-sd" if case.kind == "digits" else str(_pipeline(case, folder / "model", tiny))
    settings = {**case.settings, **({"data__class_images": str(_images(folder / "class", side, 4))}
                                    if "data__class_prompt" in case.settings else {})}  # fmt: skip
    recipe: dict[str, Any] = {
        "task": "text_to_image",
        "model": {"path": path, "dtype": "float32", "image_size": side},
        "data": {"train": str(_images(folder / "images", side, max(8, rows * 2))), "eval_split": 0.0},
        "method": {**case.method},
        "training": {"learning_rate": 1e-4, "batch_size": rows, "max_steps": steps, "save_steps": 1000},
        "evaluation": {"enabled": False},
        "output": {"dir": str(folder / "out")},
    }
    for key, value in settings.items():
        section, _, inner = key.partition("__")
        recipe.setdefault(section, {})[inner] = value
    out = folder / "recipe.yaml"
    out.write_text(yaml.safe_dump(recipe))
    return out


def _images(folder: Path, side: int, count: int) -> Path:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.effect_noise((side, side), 60 + i).convert("RGB").save(folder / f"{i}.png")
    lines = [json.dumps({"file_name": f"{i}.png", "text": f"wall {'abcdefgh'[i % 8]}"}) for i in range(count)]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _pipeline(case: Drawing, folder: Path, tiny: bool) -> Path:
    """Of a sixth to a third of the published pipelines' widths, with all their blocks; a tiny one has few channels."""
    import torch

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    dtype = getattr(torch, case.settings.get("model__dtype", "float32"))
    made = {"sd": _sd, "sdxl": _sdxl, "flux": _flux}[case.kind](folder, tiny)
    made.to(dtype=dtype)
    made.save_pretrained(folder)
    return folder


def _vae(tiny: bool, **more: Any) -> Any:
    from diffusers import AutoencoderKL

    widths = (32, 32, 32, 32) if tiny else (64, 128, 256, 256)
    return AutoencoderKL(
        block_out_channels=widths, layers_per_block=2, latent_channels=4, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, **more,
    )  # fmt: skip


def _clip(kind: Any, words: int, width: int, layers: int) -> Any:
    from transformers import CLIPTextConfig

    return kind(CLIPTextConfig(
        vocab_size=words, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=width // 32, max_position_embeddings=77, projection_dim=width, bos_token_id=512,
        eos_token_id=513, pad_token_id=513,
    ))  # fmt: skip


def _tokenizer(folder: Path) -> Any:
    from afina.train.base.pipelines.made_pipelines import byte_tokenizer

    made = byte_tokenizer(folder)
    made.model_max_length = 77
    return made


def _sd(folder: Path, tiny: bool) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    tokenizer, width = _tokenizer(folder), 32 if tiny else 96
    unet = UNet2DConditionModel(
        sample_size=64, block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        cross_attention_dim=32 if tiny else 256, attention_head_dim=4 if tiny else 8,
    )  # fmt: skip
    made: Any = StableDiffusionPipeline(
        vae=_vae(tiny), text_encoder=_clip(CLIPTextModel, len(tokenizer), 32 if tiny else 256, 2 if tiny else 12),
        tokenizer=tokenizer, unet=unet, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    )  # fmt: skip
    return made


def _sdxl(folder: Path, tiny: bool) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    tokenizer, width, text = _tokenizer(folder), 32 if tiny else 64, 32 if tiny else 128
    unet = UNet2DConditionModel(
        sample_size=128, block_out_channels=(width, 2 * width, 4 * width),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
        transformer_layers_per_block=(1, 2, 10), attention_head_dim=(2, 4, 8), cross_attention_dim=2 * text,
        addition_embed_type="text_time", addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + text,
    )  # fmt: skip
    texts = [_clip(kind, len(tokenizer), text, 4) for kind in (CLIPTextModel, CLIPTextModelWithProjection)]
    made: Any = StableDiffusionXLPipeline(
        vae=_vae(tiny), text_encoder=texts[0], text_encoder_2=texts[1], tokenizer=tokenizer, tokenizer_2=tokenizer,
        unet=unet, scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    )  # fmt: skip
    return made


def _flux(folder: Path, tiny: bool) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

    tokenizer, text = _tokenizer(folder), 32 if tiny else 256
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((one, -1.0) for one in "▁abcdefghijklmnopqrstuvwxyz")]
    other = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=128)
    sizes = {"d_model": text, "d_kv": 16, "d_ff": 2 * text, "num_layers": 2 if tiny else 8, "num_heads": text // 16}
    made: Any = FluxPipeline(
        vae=_vae(tiny, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1),
        text_encoder=_clip(CLIPTextModel, len(tokenizer), text, 2 if tiny else 6), tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(T5Config(vocab_size=len(other), **sizes)), tokenizer_2=other,
        transformer=FluxTransformer2DModel(
            in_channels=16, num_layers=1 if tiny else 6, num_single_layers=1 if tiny else 12, attention_head_dim=32,
            num_attention_heads=2 if tiny else 12, joint_attention_dim=text, pooled_projection_dim=text,
            guidance_embeds=True, axes_dims_rope=(4, 14, 14),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
    return made
