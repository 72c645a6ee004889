"""Random models that see images, of 40,000 parameters, with a byte tokenizer, and rows for them."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from . import tiny

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}PLACE{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{% if m['role'] == 'assistant' %}<eos>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_TEXT = {
    "vocab_size": 280, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "initializer_range": 0.2,
}  # fmt: skip
_EYE = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4,
    "image_size": 16,
}  # fmt: skip

_SMALL = {"size": {"longest_edge": 16}, "max_image_size": {"longest_edge": 16}}


def _tokenizer(place: str, **words: str):
    from transformers import PreTrainedTokenizerFast

    core = tiny.tokenizer()._tokenizer
    out = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", extra_special_tokens=words
    )
    out.chat_template = TEMPLATE.replace("PLACE", place)
    return out


def write_idefics3(folder: Path) -> Path:
    """SmolVLM's architecture: values of images a row, padded to the row with most."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    eye = Idefics3ImageProcessorPil(**_SMALL, do_image_splitting=False)
    return _in_tiles(folder, Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor, eye)


def _in_tiles(folder: Path, config, model, processor, eye, videos=(), **words: str) -> Path:
    """A model whose images stand between tokens that tell their tiles."""
    from transformers import LlamaConfig

    words |= {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>",
              "global_image_token": "<global-img>", "end_of_utterance": "<end_of_utterance>"}  # fmt: skip
    tokenizer = _tokenizer("<image>", **words)
    torch.manual_seed(0)
    made = config(
        text_config=LlamaConfig(**_TEXT), vision_config={**_EYE, "initializer_range": 0.2}, scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), pad_token_id=0,
    )  # fmt: skip
    reader = processor(eye, tokenizer, *videos, image_seq_len=4, chat_template=tokenizer.chat_template)
    return _written(folder, model(made), reader)


def write_llava(folder: Path) -> Path:
    """Values of images one after the other, whatever row they are of."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = _tokenizer("<image>", image_token="<image>")
    eye = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    torch.manual_seed(0)
    config = LlavaConfig(
        text_config=LlamaConfig(**_TEXT), vision_config=CLIPVisionConfig(**_EYE, projection_dim=16),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=16,
    )  # fmt: skip
    processor = LlavaProcessor(
        eye, tokenizer, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip
    return _written(folder, LlavaForConditionalGeneration(config), processor)


def write_gemma3(folder: Path) -> Path:
    """A value for each token, too: which are of images."""
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3Processor,
        Gemma3TextConfig,
        SiglipVisionConfig,
    )
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    words = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = _tokenizer("<start_of_image>", **words)
    torch.manual_seed(0)
    config = Gemma3Config(
        text_config=Gemma3TextConfig(**_TEXT, head_dim=8, layer_types=["sliding_attention", "full_attention"]),
        vision_config=SiglipVisionConfig(**_EYE), mm_tokens_per_image=4,
        image_token_id=tokenizer.image_token_id, boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )  # fmt: skip
    eye = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    processor = Gemma3Processor(eye, tokenizer, image_seq_length=4, chat_template=tokenizer.chat_template)
    return _written(folder, Gemma3ForConditionalGeneration(config), processor)


def write_qwen2_5_vl(folder: Path) -> Path:
    """As many values as an image has patches, beside its grid, by which positions and windows go; needs torchvision."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    words = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "vision_bos_token": "<|vision_start|>",
             "vision_eos_token": "<|vision_end|>"}  # fmt: skip
    tokenizer = _tokenizer("<|vision_start|><|image_pad|><|vision_end|>", **words)
    eye = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 64, "max_pixels": 512}
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config={**_TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        vision_config={"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 4,
                       "out_hidden_size": 32, "window_size": 16, "fullatt_block_indexes": [1]},
        **{f"{key}_id": tokenizer.convert_tokens_to_ids(words[key]) for key in ("image_token", "video_token")},
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )  # fmt: skip
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**eye), tokenizer, Qwen2VLVideoProcessor(**eye), chat_template=tokenizer.chat_template
    )
    return _written(folder, Qwen2_5_VLForConditionalGeneration(config), processor)


def write_smolvlm(folder: Path) -> Path:
    """As Idefics 3, whose processor takes videos too; needs torchvision and num2words."""
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    eye = SmolVLMImageProcessor(**_SMALL, do_image_splitting=False)
    videos = [SmolVLMVideoProcessor(**_SMALL)]
    return _in_tiles(
        folder, SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMProcessor, eye, videos, video_token="<video>"
    )


def _written(folder: Path, model, processor) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


_STAGES = {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}


def write_vit(folder: Path) -> Path:
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    sizes = {**_EYE, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "initializer_range": 0.2}
    eye = ViTImageProcessorPil(size={"height": 16, "width": 16})
    return _written(folder, ViTForImageClassification(ViTConfig(**sizes, num_labels=5)), eye)


def write_convnext(folder: Path) -> Path:
    from transformers import ConvNextConfig, ConvNextForImageClassification
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

    torch.manual_seed(0)
    eye = ConvNextImageProcessorPil(size={"shortest_edge": 32})
    return _written(folder, ConvNextForImageClassification(ConvNextConfig(**_STAGES)), eye)


def write_resnet(folder: Path) -> Path:
    from transformers import ResNetConfig, ResNetForImageClassification
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

    torch.manual_seed(0)
    eye = ConvNextImageProcessorPil(size={"shortest_edge": 32})
    return _written(folder, ResNetForImageClassification(ResNetConfig(**_STAGES, embedding_size=8)), eye)


def write_clip(folder: Path) -> Path:
    from transformers import CLIPConfig, CLIPForImageClassification
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    text = {key: value for key, value in _TEXT.items() if "key_value" not in key}
    config = CLIPConfig(text_config=text, vision_config=_EYE, projection_dim=16)
    eye = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return _written(folder, CLIPForImageClassification(config), eye)


def write_mobilenet_v2(folder: Path) -> Path:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification
    from transformers.models.mobilenet_v2.image_processing_pil_mobilenet_v2 import MobileNetV2ImageProcessorPil

    torch.manual_seed(0)
    eye = MobileNetV2ImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    config = MobileNetV2Config(depth_multiplier=0.1, min_depth=8, tf_padding=False, finegrained_output=False)
    return _written(folder, MobileNetV2ForImageClassification(config), eye)


CLASSIFIERS = {"vit": write_vit, "convnext": write_convnext, "resnet": write_resnet, "clip": write_clip}


FAMILIES = {"idefics3": write_idefics3, "llava": write_llava, "gemma3": write_gemma3}
WITH_VIDEOS = {"qwen2_5_vl": write_qwen2_5_vl, "smolvlm": write_smolvlm}
"""Whose processors take videos too, and are not to be had without torchvision."""


def write_image(path: Path, colour: tuple[int, int, int]) -> Path:
    from PIL import Image

    Image.new("RGB", (20, 16), colour).save(path)
    return path


def write_rows(folder: Path, n: int, name: str = "train.jsonl", start: int = 0) -> Path:
    """Black and white pictures: which is it? Only the picture tells."""
    rows = []
    for i in range(start, start + n):
        dark = i % 2 == 0
        shade = (10 + i) % 60 if dark else 250 - i % 60
        write_image(folder / f"{i}.png", (shade, shade, shade))
        question = [{"type": "image", "path": f"{i}.png"}, {"type": "text", "text": "which?"}]
        rows.append({"messages": [{"role": "user", "content": question},
                                  {"role": "assistant", "content": "black" if dark else "white"}]})  # fmt: skip
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
