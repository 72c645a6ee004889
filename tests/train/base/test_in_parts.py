"""A base that two processes read together: what each reads of the files, and what they have then."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from afina.core.disk.fingerprint import digests
from afina.core.layers.sharded import is_sharded, units, whole
from afina.devices.place import place
from afina.devices.ranks import joined, meet, spread_out
from afina.errors import AfinaWarning
from afina.train.base import in_parts
from afina.train.base.base_model import load_base
from afina.train.recipe.sections import ModelSection

from ...battery import whole as shapes

LOADERS = {"CAUSAL_LM": "AutoModelForCausalLM", "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
           "SEQ_CLS": "AutoModelForSequenceClassification"}  # fmt: skip


def read(folder: str, loader: str, heads: tuple[str, ...], dtype: str = "float32") -> tuple[Any, int]:
    """A base, and how many numbers were made of what lies in its files."""
    import transformers.core_model_loading as loading

    taken = list[int]()

    def counted(of: Any) -> Any:
        def made(*args: Any, **kwargs: Any) -> Any:
            out = of(*args, **kwargs)
            taken.append(out.numel())
            return out

        return made

    own, shards = loading._materialize_copy, loading.DtensorShardOperation.shard_tensor
    loading._materialize_copy, loading.DtensorShardOperation.shard_tensor = counted(own), counted(shards)
    torch.manual_seed(3)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AfinaWarning)  # what the files lack is told
            model = load_base(ModelSection(path=folder, device="cpu", dtype=dtype), folder, loader, {}, heads)
    finally:
        loading._materialize_copy, loading.DtensorShardOperation.shard_tensor = own, shards
    return model.eval(), sum(taken)


def looked(folder: str, loader: str, heads: tuple[str, ...], dtype: str) -> dict[str, Any]:
    """Of a base that is read as two processes do, and as one does."""
    one, every = read(folder, loader, heads, dtype)
    inputs = {"input_ids": shapes.IDS[:1]}
    if one.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = shapes.IDS[:1, :4]
    with joined(place("cpu")):
        spread_out(True)
        model, here = read(folder, loader, heads, dtype)
        own = dict(model.named_parameters())
        out = {
            "share": round(100 * here / every),
            "whole": sorted(n for n, p in own.items() if not is_sharded(p)),
            "groups": sum(1 for _ in units(model)),
            "otherwise": [n for n, p in one.named_parameters() if not torch.equal(whole(own[n].detach()), p)],
            "dtypes": {str(p.dtype) for p in own.values()},
            "same base": digests(model) == digests(one),
            "logits": bool(torch.equal(model(**inputs).logits, one(**inputs).logits)),
        }
        meet()
    return out


def expected(**changes: Any) -> list[dict[str, Any]]:
    plain = {"share": 50, "whole": [], "groups": 3, "otherwise": [], "dtypes": {"torch.float32"}, "same base": True,
             "logits": True}  # fmt: skip
    return [{**plain, **changes}] * 2


@pytest.mark.parametrize(
    ("shape", "changes"),
    [("decoder", {}), ("tied", {"dtypes": {"torch.bfloat16"}}),
     pytest.param("tied-seq2seq", {"groups": 5}, marks=pytest.mark.whole("the same way"))],
)  # fmt: skip
def test_each_process_reads_half_of_every_weight_and_together_they_have_the_base(shape, changes, together, tmp_path):
    made = shapes.SHAPES[shape]
    made.build(0, shapes.WIDTH).save_pretrained(tmp_path)
    dtype = next(iter(changes.get("dtypes", {"torch.float32"}))).removeprefix("torch.")
    assert together(looked, str(tmp_path), LOADERS[made.task], (), dtype) == expected(**changes)


def test_what_the_files_lack_is_drawn_as_one_process_draws_it_and_stays_whole(together, tmp_path):
    shapes.SHAPES["decoder"].build(0, shapes.WIDTH).save_pretrained(tmp_path)
    file, lost = tmp_path / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    save_file({n: t for n, t in load_file(file).items() if n != lost}, file, {"format": "pt"})
    first, second = together(looked, str(tmp_path), LOADERS["SEQ_CLS"], ("score",), "float32")
    assert first == second
    assert first.pop("share") == 100  # once to see what lacks, and once to leave it whole
    assert first == {k: v for k, v in expected(whole=[lost, "score.weight"])[0].items() if k != "share"}


def in_four_bits(folder: str) -> dict[str, Any]:
    """Of a base in NF4 that is read as two processes do, and as one does."""
    section, kept = ModelSection(path=folder, device="cpu", dtype="float32", quantize="nf4"), list[int]()
    loader = LOADERS["CAUSAL_LM"]
    one: Any = load_base(section, folder, loader, {}).eval()
    for layer in layers(one):
        layer.support_avx512bf16_for_cpu = False  # its kernel computes in bfloat16
    with joined(place("cpu")):
        spread_out(True)
        own, in_parts.keep_part = in_parts.keep_part, lambda *of: own(*of) or kept.append(of[1].nbytes)
        try:
            model: Any = load_base(section, folder, loader, {}).eval()
        finally:
            in_parts.keep_part = own
        out = {
            "share": round(100 * sum(kept) / sum(layer.weight.nbytes for layer in layers(one))),
            "whole": [n for n, p in model.named_parameters() if not is_sharded(p)],
            "here": round(100 * sum(layer.weight.to_local().nbytes for layer in layers(model)) / sum(kept)),
            "same base": digests(model) == digests(one),
            "logits": bool(torch.equal(model(input_ids=shapes.IDS).logits, one(input_ids=shapes.IDS).logits)),
        }
        meet()
    return out


def layers(model: Any) -> list[Any]:
    return [m for m in model.modules() if type(m).__name__ == "Linear4bit"]


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_each_process_keeps_half_of_a_layer_in_four_bits_as_soon_as_it_is_quantised(together, tmp_path):
    shapes.SHAPES["decoder"].build(0, shapes.WIDTH).save_pretrained(tmp_path)
    assert (
        together(in_four_bits, str(tmp_path))
        == [{"share": 50, "whole": [], "here": 100, "same base": True, "logits": True}] * 2
    )


def test_an_adapter_below_needs_the_whole_base(tmp_path):
    section = ModelSection(path="x", adapter=str(tmp_path), adapter_as="base")
    assert "merged" in str(in_parts.why_read_whole(section))
    assert in_parts.why_read_whole(ModelSection(path="x")) is None
