"""What is measured on a GPU: shapes, batches, methods, and who takes part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK = 16
SHAPES = MappingProxyType({
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": False},
})  # fmt: skip
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 320}  # fmt: skip

FAST, ALONE = "afina + speed_up", "afina + speed_up, loss alone"
LIGER, COMPILE = "peft + liger", "peft + compile"
COMPILED, GRAPHS = f"{ALONE} + compile", f"{ALONE} + compile in CUDA graphs"
REPLAYED = f"{ALONE}, replayed"
ADDED, CARRIED, KERNEL = (f"{REPLAYED}, updates {how}" for how in ("added", "carried", "in one kernel"))
WAYS = "ways"
"""Not a row: layers alone, by every way that updates take (`ways`)."""
_STEP = ("peft", LIGER, "afina", ALONE)
_ROWS = ("peft", "afina", FAST)
PADDED, LENGTHS, EQUAL = "afina, padded", "afina, by lengths", "afina, the same tokens in equal rows"
LENGTHS_REPLAYED, EQUAL_REPLAYED = f"{LENGTHS}, replayed", f"{EQUAL}, replayed"


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        size: a shape of `SHAPES`.
        batch, tokens: rows of a batch and tokens of a row.
        method: lora, dora or full.
        adapters: as many as rows, one each; forward alone is timed.
        layers: fewer than the shape has; 0 for all.
        supervised: the share of tokens that the loss is taken on, at the end of a row.
        lengths: whether rows have lengths from a sixteenth of `tokens` to all of it.
        stored: what the base is in, if not in bfloat16: nf4 or int8.
        aim: times the floor that are wanted; 0 for none.
    """

    name: str
    size: str
    batch: int
    tokens: int
    contenders: tuple[str, ...] = _STEP
    method: str = "lora"
    adapters: bool = False
    layers: int = 0
    supervised: float = 1.0
    lengths: bool = False
    stored: str = ""
    checkpointing: bool = False
    aim: float = 0.0

    def tiny(self) -> Row:
        """The same in miniature, for a trial of the measuring itself."""
        return replace(self, batch=min(self.batch, 2), tokens=16, layers=0)

    def shape(self, tiny: bool) -> dict[str, Any]:
        """The model's sizes, as `LlamaConfig` takes them."""
        out = {**SHAPES[self.size], **(TINY if tiny else {}), "max_position_embeddings": 16384}
        return {**out, "num_hidden_layers": self.layers or out["num_hidden_layers"]}


ROWS = {row.name: row for row in (
    Row("1b", "1b", 4, 1024, (*_STEP, REPLAYED, FAST, COMPILE, COMPILED, GRAPHS, "unsloth"), aim=1.8),
    Row("8b-8-layers", "8b", 2, 2048, (*_STEP, REPLAYED, COMPILE, "unsloth"), layers=8, aim=1.35),
    Row("1b-short", "1b", 16, 64, (*_STEP, REPLAYED, COMPILE, COMPILED, GRAPHS), aim=3.0),
    Row("1b-packed", "1b", 16, 1024, (PADDED, LENGTHS, EQUAL, LENGTHS_REPLAYED, EQUAL_REPLAYED), lengths=True),
    Row("1b-ways", "1b", 4, 1024, (ADDED, CARRIED, KERNEL, REPLAYED)),
    Row("8b-qlora", "8b", 2, 2048, ("peft", LIGER, ALONE, REPLAYED), stored="nf4", checkpointing=True),
    Row("8b-checkpointing", "8b", 2, 2048, (LIGER, ALONE, REPLAYED), checkpointing=True),
    Row("8b-int8", "8b", 2, 2048, ("peft", ALONE), stored="int8", checkpointing=True),
    Row("8b", "8b", 2, 2048, (LIGER, ALONE, REPLAYED), aim=1.35),
    Row("1b-third", "1b", 4, 1024, (*_STEP, REPLAYED), supervised=1 / 3),
    Row("1b-long", "1b", 1, 8192, (LIGER, ALONE)),
    Row("1b-dora", "1b", 4, 1024, method="dora"),
    Row("1b-full", "1b", 4, 1024, ("plain", "plain + liger", "plain + compile", ALONE), method="full"),
    Row("1b-adapters", "1b", 8, 256, _ROWS, adapters=True),
    Row("1b-adapters-dora", "1b", 8, 256, _ROWS, method="dora", adapters=True),
    Row("1b-adapters-nf4", "1b", 8, 256, _ROWS, stored="nf4", adapters=True),
    Row("1b-adapters-int8", "1b", 8, 256, _ROWS, stored="int8", adapters=True),
)}  # fmt: skip
"""Those with an aim first, so that a short time measures them."""
NAMES = (*(name for name, row in ROWS.items() if row.aim), WAYS, *(name for name, row in ROWS.items() if not row.aim))
