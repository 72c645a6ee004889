"""A load that fails leaves no trace on the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import afina
from afina.core.disk.checkpoint import WEIGHTS_NAME
from afina.core.files.allocation import AllocationLimit
from afina.errors import AfinaError, CheckpointError, ConfigError

from ..tiny import bits, llama, load, mlp, rewrite, same_bits


def _resized(folder: Path) -> None:
    """An adapter of a base with more tokens, whose file lacks one tensor."""
    base = llama(vocabulary=40)
    model = afina.get_peft_model(base, afina.LoraConfig(r=2, task_type="CAUSAL_LM"))
    model.save_pretrained(folder, save_embedding_layers=True)

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[next(k for k in tensors if "lora_A" in k)]

    rewrite(folder, drop)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_failed_load_gives_vocabulary_training_and_trainability_back(
    tied: bool, training: bool, tmp_path: Path
) -> None:
    _resized(tmp_path)
    base = llama(tied=tied).train(training)
    base.model.layers[0].requires_grad_(False)
    before, trained = bits(base), {n for n, p in base.named_parameters() if p.requires_grad}
    modules = [type(m) for m in base.modules()]
    with pytest.raises(AfinaError, match="adapter_"):
        load(tmp_path, base)
    assert same_bits(bits(base), before)
    assert {n for n, p in base.named_parameters() if p.requires_grad} == trained
    assert [type(m) for m in base.modules()] == modules
    assert base.training is training
    assert base.config.vocab_size == base.get_input_embeddings().num_embeddings == 32
    assert (base.get_input_embeddings().weight is base.get_output_embeddings().weight) is tied


def test_file_with_far_more_numbers_than_the_model_is_refused_unread(tmp_path: Path) -> None:
    """A sparse file: its gigabytes take no room on disk, and would in memory."""
    _resized(tmp_path)
    path = tmp_path / WEIGHTS_NAME
    rows = 268_000_000
    header = (
        f'{{"base_model.model.model.embed_tokens.weight":{{"dtype":"F32","shape":[{rows},16],'
        f'"data_offsets":[0,{rows * 64}]}}}}'
    ).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + rows * 64)
    base = llama()
    with pytest.raises(CheckpointError, match="far more numbers than the model"):
        load(tmp_path, base)
    assert base.config.vocab_size == 32


def test_small_and_proportionate_tensors_may_be_asked_for_while_loading() -> None:
    with AllocationLimit(mlp(), {}):
        torch.empty(1000, 1000)
        torch.zeros(8, device="meta")
        torch.arange(10**6)
        with pytest.raises(ConfigError, match="ask for a tensor"):
            torch.empty(10**6, 10)
        with pytest.raises(ConfigError, match="ask for a tensor"):
            torch.randn(2**63)
        with pytest.raises(ConfigError, match="ask for a tensor"):
            torch.zeros((-1, 4), device="meta")
        with pytest.raises(ConfigError, match="ask for a tensor"):
            torch.eye(10**6)
    torch.empty(3_000_000)


def test_many_small_tensors_are_added_up() -> None:
    with AllocationLimit(mlp(), {}):
        for _ in range(8):
            torch.empty(1000, 1000)
        with pytest.raises(ConfigError, match="ask for a tensor"):
            torch.empty(1000, 1000)
