"""Small models for the tests of the core."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import afina
from afina.core.disk.checkpoint import WEIGHTS_NAME

FIRST = "base_model.model.layers.0.up.lora_A.weight"
"""A key of every adapter on disk."""


class Mlp(nn.Module):
    """Numbered layers below `layers`, and a head; no transformers anywhere."""

    def __init__(self, width: int = 8, depth: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(width, 2 * width), "down": nn.Linear(2 * width, width)})
            for _ in range(depth)
        )
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer["down"](torch.tanh(layer["up"](x)))
        return self.head(x)


def mlp(width: int = 8, depth: int = 3, seed: int = 0) -> Mlp:
    """An `Mlp` whose weights depend on the seed alone."""
    torch.manual_seed(seed)
    return Mlp(width, depth).eval()


def inputs(width: int = 8) -> Tensor:
    """A fixed batch."""
    return torch.randn(5, width, generator=torch.Generator().manual_seed(3))


def nudge(model: nn.Module, seed: int = 1) -> Any:
    """Move every trainable parameter by a random amount."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


def config(**options: Any) -> Any:
    """A small LoRA on both layers of every block."""
    return afina.LoraConfig(**{"r": 2, "lora_alpha": 3, "target_modules": ["up", "down"], **options})


def trained(base: nn.Module | None = None, seed: int = 1, **options: Any) -> Any:
    """An `Mlp` with a nudged LoRA."""
    return nudge(afina.get_peft_model(base or mlp(), config(**options)), seed).eval()


def bits(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's state."""
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two states have the same names and bits."""
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def llama(vocabulary: int = 32, tied: bool = False, seed: int = 0, **options: Any) -> Any:
    """A random two-layer Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            tie_word_embeddings=tied,
            max_position_embeddings=32,
            pad_token_id=0,
            **{**sizes, **options},
        )
    ).eval()


def bert(head: str = "BertForSequenceClassification", seed: int = 0) -> Any:
    """A random two-layer BERT with some head."""
    import transformers

    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return getattr(transformers, head)(
        transformers.BertConfig(
            vocab_size=40,
            num_labels=2 if "Question" in head else 3,
            max_position_embeddings=32,
            is_decoder=head.endswith("LMHeadModel"),
            **sizes,
        )
    ).eval()


def t5(kind: str = "T5", seed: int = 0) -> Any:
    """A random two-layer T5 or mT5."""
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0, eos_token_id=39
    )
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()


def gpt2(seed: int = 0) -> Any:
    """A random two-layer GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=2)).eval()


def saved(model: Any, folder: Path) -> Any:
    """A transformers model loaded from a folder that it was saved to."""
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder).eval()


def load(folder: Path, base: Any = None, **options: Any) -> Any:
    """The adapter of a folder on a pristine base."""
    return afina.PeftModel.from_pretrained(base if base is not None else mlp(), folder, **options)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors of a file as someone else's tool would: without our metadata."""
    path = folder / WEIGHTS_NAME
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path, {"format": "pt"})


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
