"""Whole models of every shape, and what every registered method is put on them with."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

import afina
from afina.core.config import methods

WIDTH, WORDS = 32, 48
IDS = torch.randint(3, WORDS - 2, (3, 6), generator=torch.Generator().manual_seed(0))
TOKENS = sorted({int(i) for i in IDS[:2, 1:3].flatten()})
MASK = torch.ones_like(IDS)
MASK[1, 4:] = 0

# What a method needs on a model of 32 numbers a token; all others are put on as they come.
OPTIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    "ADALORA": {"total_step": 100},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1},
    "C3A": {"block_size": 16},
    "CPT": {"cpt_token_ids": [5, 6, 7]},
    "CARTRIDGE": {"num_virtual_tokens": 4},
    "FOURIERFT": {"n_frequency": 50},
    "MULTITASK_PROMPT_TUNING": {"num_tasks": 3, "num_virtual_tokens": 4},
    "POLY": {"n_tasks": 3},
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
    "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "PSOFT": {"r": 8},
    "P_TUNING": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "ROAD": {"group_size": 16},
    "SHADOW": {"shadow_dropout": 0.0},
    "SHIRA": {"r": 2},
    "TRAINABLE_TOKENS": {"token_indices": TOKENS},
    "VBLORA": {"num_vectors": 16, "vector_length": 16},
    "WAVEFT": {"n_frequency": 64},
})  # fmt: skip
WITH_TASKS = frozenset({"POLY", "MULTITASK_PROMPT_TUNING"})


@dataclass(frozen=True)
class Shape:
    """A kind of whole model.

    Attributes:
        make: a random one by seed and width.
        task: its task type.
        head, embedding: names for `modules_to_save`.
        tied: whether both are one table.
    """

    name: str
    make: Callable[[int, int], Any]
    task: str | None
    head: str
    embedding: str
    tied: bool = False

    def __str__(self) -> str:
        return self.name

    def build(self, seed: int, width: int) -> Any:
        """A random one of its own; the next random numbers follow from the seed too."""
        model = copy.deepcopy(_made(self.make, seed, width))
        torch.manual_seed(seed)
        return model


@functools.cache
def _made(make: Callable[[int, int], Any], seed: int, width: int) -> Any:
    return make(seed, width)


def _llama(kind: str, tied: bool, seed: int, width: int) -> Any:
    import transformers

    torch.manual_seed(seed)
    sizes = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=WORDS, hidden_size=width, tie_word_embeddings=tied, pad_token_id=0,
                                      attention_bias=True, **sizes)  # fmt: skip
    if kind == "LlamaForSequenceClassification":
        config.num_labels = 3
    return getattr(transformers, kind)(config).eval()


def _bert(kind: str, seed: int, width: int) -> Any:
    import transformers

    torch.manual_seed(seed)
    config = transformers.BertConfig(vocab_size=WORDS, hidden_size=width, intermediate_size=48, num_hidden_layers=2,
                                     num_attention_heads=4, num_labels=3, max_position_embeddings=64)  # fmt: skip
    return getattr(transformers, kind)(config).eval()


def _t5(tied: bool, seed: int, width: int) -> Any:
    import transformers

    torch.manual_seed(seed)
    config = transformers.T5Config(vocab_size=WORDS, d_model=width, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
                                   decoder_start_token_id=0, tie_word_embeddings=tied)  # fmt: skip
    return transformers.T5ForConditionalGeneration(config).eval()


SHAPES: Mapping[str, Shape] = MappingProxyType({s.name: s for s in (
    Shape("decoder", functools.partial(_llama, "LlamaForCausalLM", False), "CAUSAL_LM", "lm_head", "embed_tokens"),
    Shape("tied", functools.partial(_llama, "LlamaForCausalLM", True), "CAUSAL_LM", "lm_head", "embed_tokens", True),
    Shape("seq2seq", functools.partial(_t5, False), "SEQ_2_SEQ_LM", "lm_head", "embed_tokens"),
    Shape("tied-seq2seq", functools.partial(_t5, True), "SEQ_2_SEQ_LM", "lm_head", "embed_tokens", True),
    Shape("encoder", functools.partial(_bert, "BertModel"), "FEATURE_EXTRACTION", "pooler", "word_embeddings"),
    Shape("classifier", functools.partial(_bert, "BertForSequenceClassification"), "SEQ_CLS", "classifier",
          "word_embeddings"),
    Shape("decoder-classifier", functools.partial(_llama, "LlamaForSequenceClassification", False), "SEQ_CLS", "score",
          "embed_tokens"),
)})  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A method on a shape with an option."""

    method: str
    shape: Shape
    option: str
    options: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.method}-{self.shape}-{self.option}"

    def config(self) -> Any:
        kind = methods()[self.method].config
        return kind(**{**OPTIONS.get(self.method, {}), **self.options, "task_type": self.shape.task})

    @property
    def routes(self) -> bool:
        return self.method == "XLORA"

    def adapted(self, folder: Path, seed: int = 1, dtype: torch.dtype = torch.float32) -> Any:
        """A base with the method's adapter, nudged, in eval mode; `folder` holds what it needs beside it."""
        base = self.shape.build(0, WIDTH).to(dtype)
        config = self.config()
        if self.routes:
            config.adapters = dict(experts(self.shape, folder))
            config.__post_init__()
        model = afina.get_peft_model(base, config)
        nudge(model, seed)
        return model.eval()

    def loaded(self, folder: Path, experts_in: Path, base: Any = None, **options: Any) -> Any:
        """The adapter in a folder on a fresh base."""
        more = {"adapters": dict(experts(self.shape, experts_in))} if self.routes else {}
        base = self.shape.build(0, WIDTH) if base is None else base
        return afina.PeftModel.from_pretrained(base, folder, **more, **options)

    def logits(self, model: Any) -> Tensor:
        return logits(model, self.shape, self.method in WITH_TASKS)


def experts(shape: Shape, folder: Path) -> dict[str, str]:
    """Two LoRAs on disk for a method that routes among adapters."""
    out = {}
    for name in ("one", "two"):
        path = folder / str(shape) / name
        out[name] = str(path)
        if not path.exists():
            config = afina.LoraConfig(r=2, init_lora_weights=False)  # no task: it would bring a trained head
            afina.get_peft_model(shape.build(0, WIDTH), config).save_pretrained(path)
    return out


def logits(model: Any, shape: Shape, tasks: bool = False) -> Tensor:
    """What a model says to the same rows."""
    inputs: dict[str, Any] = {"input_ids": IDS, "attention_mask": MASK}
    if shape.task == "SEQ_2_SEQ_LM":
        inputs["decoder_input_ids"] = IDS[:, :4]
    if tasks and isinstance(model, afina.PeftModel):
        inputs["task_ids"] = torch.tensor([0, 1, 2])
    with torch.no_grad():
        out = model(**inputs)
    found = getattr(out, "logits", None)
    return (out.last_hidden_state if found is None else found).clone()


def nudge(model: Any, seed: int) -> None:
    """Move what trains by a random amount."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def options_of(method: str, shape: Shape) -> Iterator[tuple[str, dict[str, Any]]]:
    """The options that a method's config has, as far as the shape has a place for them."""
    fields = {f.name for f in dataclasses.fields(methods()[method].config)}
    yield "plain", {}
    if "bias" in fields and shape.name in ("decoder", "tied", "classifier"):
        yield "bias", {"bias": "all"}
    if "modules_to_save" in fields:
        yield "head", {"modules_to_save": [shape.head]}
        yield "embedding", {"modules_to_save": [shape.embedding]}
    if "trainable_token_indices" in fields and method == "LORA":
        yield "tokens", {"trainable_token_indices": TOKENS}
    if "ensure_weight_tying" in fields and shape.tied and method == "LORA":
        for option, value in (("embedding", {"modules_to_save": [shape.embedding]}),
                              ("tokens", {"trainable_token_indices": TOKENS}),
                              ("target", {"target_modules": [shape.embedding]}),
                              ("head", {"modules_to_save": [shape.head]})):  # fmt: skip
            yield f"tying-{option}", {"ensure_weight_tying": True, **value}


# (method, shape) -> part of the error with which a method says that it is not for such models. All else must work.
_NO_PLACES = "the targets match no module"
REFUSED: Mapping[tuple[str, str], str] = MappingProxyType({
    **{("BITFIT", s): "no layer of the model has a bias" for s in ("seq2seq", "tied-seq2seq")},
    **{("ADAPTION_PROMPT", s): _NO_PLACES for s in ("seq2seq", "tied-seq2seq", "encoder", "classifier")},
    **{("SHADOW", s): "not a block of an encoder or decoder" for s in ("seq2seq", "tied-seq2seq")},
    **{("CPT", s): "CPT is for causal language models" for s in SHAPES if s not in ("decoder", "tied")},
    **{("XLORA", s): "a model that returns its hidden states" for s in ("seq2seq", "tied-seq2seq")},
})  # fmt: skip


def cases() -> list[Case]:
    """Every registered method on every shape with every option; full fine-tuning has no adapter to put anywhere."""
    return [Case(name, shape, option, options) for name in methods() if name != "FULL"
            for shape in SHAPES.values() for option, options in options_of(name, shape)]  # fmt: skip


def base_tensors(base: Any) -> dict[str, Tensor]:
    """A plain model's parameters and buffers by name, as objects that stay theirs when adapters come."""
    return {**dict(base.named_parameters(remove_duplicate=False)), **dict(base.named_buffers(remove_duplicate=False))}


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values of tensors now."""
    return {name: t.detach().clone() for name, t in tensors.items()}


def is_prompt(method: str) -> bool:
    """Whether a method adds virtual tokens."""
    return bool(methods()[method].config.is_prompt_learning)
