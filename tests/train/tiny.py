"""A random Llama of 40,000 parameters with a byte tokenizer, and recipes for it: real files, no network."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import yaml

from .tiny_sounds import as_url, tone

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if m['role'] == 'assistant' %}<eos>{% endif %}"
    "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer(chat: bool = True, pad: str = "<pad>"):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<bos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    out = PreTrainedTokenizerFast(tokenizer_object=core, pad_token=pad, eos_token="<eos>", bos_token="<bos>")
    if chat:
        out.chat_template = CHAT_TEMPLATE
    return out


def write_model(folder: Path, chat: bool = True, **options) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=2, eos_token_id=1, pad_token_id=0,
        tie_word_embeddings=True, initializer_range=0.2, **options,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer(chat).save_pretrained(folder)
    return folder


def write_rows(path: Path, n: int, start: int = 0) -> Path:
    rows = [{"text": f"n{i}", "label": "odd" if i % 2 else "even", "task": i % 3} for i in range(start, start + n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_recipe(folder: Path, model: Path, **changes) -> Path:
    """A recipe of six steps on 24 rows; `changes` maps `section__key` to a value."""
    recipe = {
        "task": "causal_lm",
        "model": {"path": str(model), "dtype": "float32"},
        "data": {
            "train": str(write_rows(folder / "train.jsonl", 24)),
            "eval": str(write_rows(folder / "eval.jsonl", 10, start=100)),
            "prompt": "{text}", "completion": "{label}", "labels": ["even", "odd"], "max_length": 64,
        },
        "method": {"type": "lora", "r": 8, "lora_alpha": 8, "target_modules": "all-linear"},
        "training": {"learning_rate": 0.01, "batch_size": 4, "max_steps": 6, "save_steps": 3, "keep_checkpoints": 3},
        "evaluation": {"batch_size": 4},
        "output": {"dir": str(folder / "out")},
    }  # fmt: skip
    for key, value in changes.items():
        section, _, inner = key.partition("__")
        if inner:
            recipe[section][inner] = value
        else:
            recipe[section] = value
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def write_t5(folder: Path) -> Path:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=259, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0,
        eos_token_id=1, pad_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer(chat=False).save_pretrained(folder)
    return folder


def write_encoder(folder: Path) -> Path:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, pad_token_id=0,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer(chat=False).save_pretrained(folder)
    return folder


def task_rows(task: str, n: int, start: int = 0) -> list[dict]:
    """Rows of a task that a tiny model can learn: an even number is even."""
    numbers = range(start, start + n)
    label = {i: "odd" if i % 2 else "even" for i in numbers}
    other = {"odd": "even", "even": "odd"}
    if task == "token_classification":
        kinds = {0: ["B-EVEN", "I-EVEN", "O"], 1: ["O", "B-ODD", "O"]}
        return [{"tokens": [f"n{i}", "so" if i % 2 else "go", "."], "tags": kinds[i % 2]} for i in numbers]
    if task in ("preference", "reward", "orpo"):
        return [{"prompt": f"n{i}", "chosen": label[i], "rejected": other[label[i]]} for i in numbers]
    if task == "extractive_qa":
        answers = {i: {"text": [label[i]], "answer_start": [0]} for i in numbers}
        return [{"question": "which?", "context": f"{label[i]} is n{i}", "answers": answers[i]} for i in numbers]
    if task == "embeddings":
        return [{"anchor": f"n{i % 10}", "positive": 3 * chr(97 + i % 10)} for i in numbers]
    if task == "grpo":
        return [{"prompt": f"n{i}", "answer": label[i]} for i in numbers]
    if task == "kto":  # a label that is false stands by an answer that is
        good = {i: bool(i // 2 % 2) for i in numbers}
        return [{"prompt": f"n{i}", "completion": label[i] if good[i] else other[label[i]], "label": good[i]}
                for i in numbers]  # fmt: skip
    if task == "image_text_to_text":  # only the image tells
        return [{"prompt": "which?", "image": _image(i), "completion": "teal" if i % 2 else "red"} for i in numbers]
    if task == "image_classification":
        return [{"image": _image(i), "label": label[i]} for i in numbers]
    if task == "text_to_image":
        return [{"image": _image(i), "text": "a teal wall" if i % 2 else "a red wall"} for i in numbers]
    if task == "audio_classification":
        return [{"audio": as_url(tone(i)), "label": label[i]} for i in numbers]
    if task == "speech_recognition":
        return [{"audio": as_url(tone(i)), "text": label[i]} for i in numbers]
    if task == "pretraining":
        return [{"text": f"n{i} is {label[i]}. " * (1 + i % 3)} for i in numbers]
    return [{"text": f"n{i}", "label": label[i]} for i in numbers]


def _image(number: int) -> str:
    """A red or a teal image as a `data:` URL."""
    import base64
    import io

    from PIL import Image

    made, level = io.BytesIO(), 100 + number % 40
    Image.new("RGB", (20, 16), (0, level, level) if number % 2 else (2 * level, 0, 0)).save(made, "PNG")
    return f"data:image/png;base64,{base64.b64encode(made.getvalue()).decode()}"


def write_task(folder: Path, task: str, models: dict[str, Path], **changes) -> Path:
    """The recipe of a task with rows and a model that fit; `models` has a "llama", a "t5", an "encoder", an
    "idefics3", a "vit", an "sd" and a "whisper"."""
    for name, n, start in (("rows.jsonl", 24, 0), ("held-out.jsonl", 10, 100)):
        text = "".join(json.dumps(row) + "\n" for row in task_rows(task, n, start))
        (folder / name).write_text(text, encoding="utf-8")
    model = models[
        {"seq2seq": "t5", "token_classification": "encoder", "extractive_qa": "encoder", "embeddings": "encoder",
         "image_text_to_text": "idefics3", "image_classification": "vit", "text_to_image": "sd",
         "audio_classification": "whisper", "speech_recognition": "whisper"}.get(task, "llama")
    ]  # fmt: skip
    own = {"data__train": str(folder / "rows.jsonl"), "data__eval": str(folder / "held-out.jsonl")}
    if task not in ("causal_lm", "seq2seq"):
        own |= {"data__labels": None, "data__prompt": None, "data__completion": None}
    if task == "image_text_to_text":
        own |= {"data__labels": ["red", "teal"], "data__label_column": "completion"}
    if task == "speech_recognition":
        own |= {"model__language": "english", "evaluation__max_new_tokens": 6}
    if task == "text_to_image":
        own |= {"diffusion": {"samples": ["a red wall"], "sample_steps": 2}}
    if task == "grpo":
        code = "def letters(prompts, answers, rows):\n    return [sum(c.isalpha() for c in a) / 8 for a in answers]\n"
        (folder / "reward.py").write_text(code)
        own["reinforcement"] = {"rewards": [f"{folder / 'reward.py'}:letters"], "generations": 4, "answer_tokens": 8}
    return write_recipe(folder, model, task=task, **{**own, **changes})
