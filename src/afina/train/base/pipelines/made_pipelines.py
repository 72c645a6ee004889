"""Pipelines that nothing was taught yet, made of a config with a fixed seed: small ones, to be trained as a whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ....cache import cache_dir, make_once
from ....errors import RecipeError, did_you_mean
from ...report.events import Reporter

PREFIX = "embedded:"
_SIDE, _WORDS, _WIDTH = 8, 32, 32
"""Pixels of a side; tokens of a caption; width of what is read of it."""
_FAR = 1000.0
"""Beside this what is in an image does not count for a group's deviation."""


def made(name: str, reporter: Reporter) -> Path:
    """The folder of a pipeline by that name, made on first use.

    Raises:
        RecipeError: there is none.
    """
    if name not in _KINDS:
        raise RecipeError("no such embedded pipeline", where="model.path", got=name, fix=did_you_mean(name, _KINDS))
    folder = cache_dir() / "models" / f"{name}-1"
    if not folder.is_dir():
        reporter.note(f"making the pipeline {name!r}: random weights, seed 0")
    return make_once(folder, _KINDS[name])


def _tiny_sd(folder: Path) -> None:
    """Stable Diffusion's architecture for images of 8 x 8 pixels, 0.8 million parameters."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = byte_tokenizer(folder)
        unet = UNet2DConditionModel(
            sample_size=_SIDE, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=8, attention_head_dim=8,
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=_WIDTH,
        )  # fmt: skip
        text = CLIPTextModel(CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=_WIDTH, intermediate_size=2 * _WIDTH, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=_WORDS, initializer_factor=3.0,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ))  # fmt: skip
        noise = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                              set_alpha_to_one=False, steps_offset=1)  # fmt: skip
        made: Any = StableDiffusionPipeline(
            vae=identity_vae(), text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=noise, safety_checker=None,
            feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        made.save_pretrained(folder)


def identity_vae() -> Any:
    """An `AutoencoderKL` whose latents are the image itself, of three channels and an empty fourth, to 1e-5.

    Its layers add nothing to what passes. The normalisation before the last convolution has each colour twice, as x and
    -x, beside two constants that are much larger: so it divides by a constant, and silu(x) - silu(-x) = x.
    """
    import torch
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8,), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), norm_num_groups=1,
        sample_size=_SIDE, scaling_factor=1.0, mid_block_add_attention=False,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()
        for half in (vae.encoder, vae.decoder):
            half.conv_norm_out.weight.fill_(1.0)
            for colour in range(3):
                for sign, at in ((1.0, 2 * colour), (-1.0, 2 * colour + 1)):
                    half.conv_in.weight[at, colour, 1, 1] = sign
                    # The deviation of two far values among eight is half of theirs.
                    half.conv_out.weight[colour, at, 1, 1] = sign * _FAR / 2
            half.conv_in.bias[6], half.conv_in.bias[7] = _FAR, -_FAR
        vae.encoder.conv_out.bias[4:] = -30.0  # the logarithm of a variance that is none
        vae.quant_conv.weight[:, :, 0, 0] = torch.eye(8)
        vae.quant_conv.weight[3] = 0.0
        vae.post_quant_conv.weight[:, :, 0, 0] = torch.eye(4)
    return vae


def byte_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer with a token for each byte, within and at the end of a word."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "tokenizer").mkdir()
    files = folder / "tokenizer" / "vocab.json", folder / "tokenizer" / "merges.txt"
    files[0].write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    files[1].write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer(str(files[0]), str(files[1]), model_max_length=_WORDS)


_KINDS: Mapping[str, Callable[[Path], None]] = MappingProxyType({"tiny-sd": _tiny_sd})
