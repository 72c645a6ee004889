"""A random Llama with an adapter of any method, as it comes out of a run; real files, no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import afina
from afina.core.config import methods
from afina.export.contract import Subject
from afina.export.target import Environment
from afina.train.recipe.sections import DataSection, ModelSection, OutputSection, Recipe
from afina.train.tasks import named
from afina.train.tasks.base import Trained

from ..battery.whole import OPTIONS, nudge
from ..train import tiny


def write_base(folder: Path, family: str = "Llama", tied: bool = False, **options: Any) -> Path:
    """A decoder with biases on its attention, whose head is its own."""
    import transformers

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 2, "eos_token_id": 1,
        "pad_token_id": 0, "attention_bias": family == "Llama", "tie_word_embeddings": tied, "initializer_range": 0.2,
    }  # fmt: skip
    kind = {"Gemma3": "Gemma3Text"}.get(family, family)
    config = getattr(transformers, f"{kind}Config")(**{**sizes, **options})
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def trained(base: Path, config: Any) -> Trained:
    """A nudged adapter on it."""
    from transformers import AutoModelForCausalLM

    model = afina.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    nudge(model, 1)
    recipe = Recipe(task="causal_lm", model=ModelSection(path=str(base)), data=DataSection(train=""),
                    output=OutputSection(dir=str(base.parent / "run")))  # fmt: skip
    return Trained(base.parent / "run", recipe, named("causal_lm"), model.eval(), tiny.tokenizer())


def subject(base: Path, config: Any, storage: str | None = None, environment: Environment | None = None) -> Subject:
    """What is exported; little text, which is said quickly."""
    return Subject(trained(base, config), storage, environment or Environment(), prompts=2, new_tokens=3,
                   licence="apache-2.0", hub_base="owner/base")  # fmt: skip


def config_of(method: str, folder: Path, base: Path) -> Any:
    """The method's config for such a model; routers get two adapters on disk."""
    kind = methods()[method].config
    more: dict[str, Any] = {}
    if method == "XLORA":
        more["adapters"] = {}
        for name in ("one", "two"):
            more["adapters"][name] = str(folder / name)
            if not (folder / name).exists():
                one = trained(base, afina.LoraConfig(r=2)).model
                one.save_pretrained(folder / name)
    return kind(**{**OPTIONS.get(method, {}), **more, "task_type": "CAUSAL_LM"})
