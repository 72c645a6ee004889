"""Packed rows see nothing of each other, measured; and what cannot keep them apart is refused."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import varlen as torchs

from afina.devices.place import VARLEN
from afina.errors import RecipeError
from afina.kernels.cuda import varlen
from afina.train.data.arranged.packing import EndToEnd, Packed, PackedCollator, bins_of, check_apart, recurring_length
from afina.train.data.arranged.packing import packed as rows_packed
from afina.train.data.encode import IGNORED, Encoded, encode_answers
from afina.train.recipe.settings import load_recipe

from ....kernels.cuda.test_varlen import formula
from ... import tiny
from ...loop.test_run import Heard, train
from ..test_encode import prompter, rows
from .cut_off import ends_otherwise

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def models():
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        MistralConfig,
        MistralForCausalLM,
    )

    grouped = {**SIZES, "vocab_size": 259, "num_key_value_heads": 2, "initializer_range": 0.2}
    learned = {"vocab_size": 259, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.2}
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**grouped)),
        "mistral, sliding window": lambda: MistralForCausalLM(MistralConfig(**grouped, sliding_window=6)),
        "gpt2, learned positions": lambda: GPT2LMHeadModel(GPT2Config(**learned, **quiet)),
        "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, vocab_size=259, initializer_range=0.2)),
    }


NAMES = ["llama", "mistral, sliding window", "gpt2, learned positions", "gpt-neox"]


def made(name, attention="sdpa", dtype=torch.float32):
    torch.manual_seed(0)
    model = models()[name]().to(dtype)
    model.set_attn_implementation(attention)
    model.config.use_cache = False  # as the Trainer sets it
    return model


def items(lengths, seed=0):
    draw = random.Random(seed)
    out = []
    for n in lengths:
        ids = [draw.randrange(3, 259) for _ in range(n)]
        out.append({"input_ids": ids, "attention_mask": [1] * n, "labels": [IGNORED] * 2 + ids[2:]})
    return out


def batch_of(members, packed):
    encoded = Encoded(members, list(range(len(members))))
    collate = PackedCollator(tiny.tokenizer(chat=False))
    if not packed:
        return collate(members)
    return collate(Packed(encoded, packed).items)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradients_of_packed_rows_are_those_of_rows_alone(name, attention):
    model = made(name, attention).train()
    members = items([9, 14, 5, 11, 7])
    found = []
    for packed in (None, [[0, 1, 2], [3, 4]]):
        model.zero_grad()
        loss = model(**batch_of(members, packed)).loss
        loss.backward()
        found.append((loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (alone, gradients), (together, of_packed) = found
    assert together == pytest.approx(alone, abs=1e-5)
    for a, b in zip(gradients, of_packed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def fast_logits(name, dtype, batch):
    """Logits of a model with afina's fast paths, in training."""
    from afina.kernels.speed import speed_up

    model = made(name, dtype=dtype).train()
    said = speed_up(model)
    return model(**batch).logits.detach().float(), said


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_tokens_of_a_row_change_no_logit_of_its_neighbours(name, place, dtype):
    members, others = items([9, 14, 5]), items([9, 14, 5], seed=1)
    changed = [others[i] if i == place else members[i] for i in range(3)]
    starts = [0, 9, 23, 28]
    (one, said), (two, _) = (fast_logits(name, dtype, batch_of(m, [[0, 1, 2]])) for m in (members, changed))
    if dtype == torch.bfloat16:  # afina's own attention is what is measured then
        assert any(sentence.startswith("attention: ") and "left" not in sentence for sentence in said)
    for row in range(3):
        part = slice(starts[row], starts[row + 1])
        same = torch.equal(one[:, part], two[:, part])
        assert same == (row != place), (row, place)


@pytest.mark.parametrize("name", NAMES)
def test_losses_in_16_bits_agree_too(name):
    members = items([9, 14, 5])
    (alone, _), (together, _) = (fast_logits(name, torch.bfloat16, batch_of(members, p)) for p in (None, [[0, 1, 2]]))
    start = 0
    for row, n in enumerate((9, 14, 5)):
        close = (together[0, start : start + n] - alone[row, :n]).abs().max() / alone.abs().max()
        assert close < 0.03
        start += n


def test_probe_passes_what_keeps_rows_apart():
    for name in NAMES:
        check_apart(made(name), tiny.tokenizer(chat=False))
        check_apart(made(name, dtype=torch.bfloat16), tiny.tokenizer(chat=False))


def test_probe_refuses_an_architecture_without_position_ids():
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=259, hidden_size=32, n_layer=2, n_head=4))
    with pytest.raises(RecipeError, match=r"(?s)kept apart by BloomForCausalLM.*training.packing=false"):
        check_apart(model, tiny.tokenizer(chat=False))


def test_probe_refuses_an_architecture_that_makes_an_attention_mask_by_itself():
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=259, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, init_std=0.2,
    )  # fmt: skip
    with pytest.raises(RecipeError, match=r"(?s)kept apart by OPTForCausalLM.*with its neighbour's tokens"):
        check_apart(OPTForCausalLM(config), tiny.tokenizer(chat=False))


def test_probe_refuses_a_model_with_a_state_that_runs_on():
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=259, hidden_size=32, num_hidden_layers=2, state_size=4))
    with pytest.raises(RecipeError, match="not kept apart by MambaForCausalLM"):
        check_apart(model, tiny.tokenizer(chat=False))


def test_probe_refuses_attention_that_ignores_masks():
    from transformers import AttentionInterface

    def careless(module, query, key, value, attention_mask, **kwargs):
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return out.transpose(1, 2), None

    AttentionInterface.register("careless", careless)
    with pytest.raises(RecipeError, match=r"(?s)careless attention.*change by"):
        check_apart(made("llama", "careless"), tiny.tokenizer(chat=False))


class Table:
    """Gives every token a number of its own, moved by `leak` where there is a neighbour, and by `shift` of any two."""

    def __init__(self, leak=0.0, shift=0.0, dtype=torch.float32, **more):
        self.training, self.device, self.leak, self.shift, self.dtype = True, torch.device("cpu"), leak, shift, dtype
        self.config = SimpleNamespace(_attn_implementation="made")
        self.active_peft_config, self.calls = more.get("config"), []

    def eval(self):
        self.training = False

    def train(self, mode):
        self.training = mode

    def __call__(self, input_ids, position_ids):
        assert torch.is_grad_enabled()
        assert not self.training
        self.calls.append((input_ids[0].tolist(), position_ids[0].tolist()))
        alone = input_ids.shape[1] == 48
        logits = input_ids[..., None].to(self.dtype).clone()
        logits += 0 if alone else self.shift * 260 + self.leak * float(input_ids[0, :48].sum())
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (Table(), None), (Table(leak=1e-7), None), (Table(leak=1.0), "with its neighbour's tokens"),
        (Table(shift=5e-4), None), (Table(shift=2e-3), "it has alone"), (Table(shift=-2e-3), "it has alone"),
        (Table(shift=1e-2, dtype=torch.bfloat16), None), (Table(shift=0.06, dtype=torch.bfloat16), "it has alone"),
        (Table(shift=2e-3, dtype=torch.float64), "it has alone"), (Table(shift=5e-4, dtype=torch.float64), None),
        (Table(config={"alora_invocation_tokens": [5]}), "one invocation"), (Table(config={"r": 2}), None),
    ],
)  # fmt: skip
def test_probe_measures_neighbours_and_place_apart(model, told):
    if told is not None:
        with pytest.raises(RecipeError, match=told) as caught:
            check_apart(model, tiny.tokenizer(chat=False))
        assert "Table (made attention)" in str(caught.value)
    else:
        check_apart(model, tiny.tokenizer(chat=False))
        (one, places), (two, both), (three, _) = model.calls
        assert places == list(range(48))
        assert both == [*range(48), *range(48)]
        assert two[48:] == three[48:] == one
        assert len({tuple(ids) for ids in (one, two[:48], three[:48])}) == 3
        assert min(one + two + three) >= 3  # no special tokens
    assert model.training


@pytest.mark.parametrize("error", [ValueError, TypeError, RuntimeError, NotImplementedError])
def test_probe_refuses_what_fails_on_packed_rows_in_its_words(error):
    class Fails(Table):
        def __call__(self, **_):
            raise error("cannot take\nthese")

    model = Fails()
    with pytest.raises(RecipeError, match="cannot take") as caught:
        check_apart(model, tiny.tokenizer(chat=False))
    assert "these" not in str(caught.value)
    assert model.training
    wordless = Fails()
    wordless.__class__ = type("Silent", (Fails,), {"__call__": lambda self, **_: (_ for _ in ()).throw(error())})
    with pytest.raises(RecipeError, match=error.__name__):
        check_apart(wordless, tiny.tokenizer(chat=False))


# -- rows into sequences ----------------------------------------------------------------------------------------------


def test_bins_hold_every_row_once_within_their_room():
    draw = random.Random(0)
    lengths = [draw.randint(1, 64) for _ in range(500)]
    bins = bins_of(lengths, 64)
    assert sorted(i for members in bins for i in members) == list(range(500))
    assert max(sum(lengths[i] for i in members) for members in bins) <= 64
    assert len(bins) <= 11 / 9 * -(-sum(lengths) // 64) + 4


def test_rows_go_where_the_least_room_is_left_the_longest_first():
    assert bins_of([4, 6, 3, 5, 2], 10) == [[1, 0], [3, 2, 4]]
    assert bins_of([10, 10], 10) == [[0], [1]]
    assert bins_of([7, 6, 3, 4], 10) == [[0, 2], [1, 3]]


def test_packing_is_told_and_keeps_every_row():
    notes = []
    recipe = SimpleNamespace(data=SimpleNamespace(task_column=None, max_length=10))
    members = items([6, 4, 5, 3])
    encoded = Encoded(members, [7, 3, 1, 0], truncated=2, masked=1)
    out = rows_packed(recipe, encoded, SimpleNamespace(note=notes.append))
    assert notes == ["packing: 4 rows in 2 sequences of up to 10 tokens, 90% of them filled"]
    assert out.parts == [[7, 3], [1, 0]]
    assert (out.source, out.truncated, out.masked) == ([7, 1], 2, 1)
    assert out.where(1) == "sequence 2"
    assert out.items[0]["input_ids"] == members[0]["input_ids"] + members[1]["input_ids"]
    recipe.data.task_column = "task"
    with pytest.raises(RecipeError, match="task_column=task"):
        rows_packed(recipe, encoded, SimpleNamespace(note=notes.append))


def test_first_token_of_a_row_is_not_predicted_from_its_neighbour():
    members = [{"input_ids": [5, 6], "attention_mask": [1, 1], "labels": [5, 6]}] * 2
    (item,) = Packed(Encoded(members, [0, 1]), [[0, 1]]).items
    assert item == {"input_ids": [5, 6, 5, 6], "labels": [IGNORED, 6, IGNORED, 6], "position_ids": [0, 1, 0, 1]}


def test_packed_rows_still_say_where_they_come_from():
    values = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    encoded = encode_answers(rows(*values), prompter(), 259)
    assert Packed(encoded, [[0, 1]]).where(0) == "d.jsonl:1 + d.jsonl:2"


def test_padding_of_packed_sequences_is_a_row_of_its_own():
    batch = batch_of(items([4, 3, 2, 2]), [[0], [1], [2, 3]])
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3], [0, 1, 2, 0], [0, 1, 0, 1]]
    assert (batch["labels"][1, 3:] == IGNORED).all()
    assert "attention_mask" not in batch


def test_by_lengths_all_rows_of_a_batch_lie_end_to_end_without_padding():
    members = items([4, 3, 2, 5])
    collate = PackedCollator(tiny.tokenizer(chat=False), by_lengths=True)
    bins = Packed(Encoded(members, [0, 1, 2, 3]), [[0, 2], [1], [3]])
    for rows_of, order in ((bins.items, (0, 2, 1, 3)), (EndToEnd(Encoded(members, [0, 1, 2, 3])).items, (0, 1, 2, 3))):
        batch = collate(rows_of)
        assert batch["input_ids"].tolist() == [[t for i in order for t in members[i]["input_ids"]]]
        assert batch["labels"].tolist() == [[t for i in order for t in members[i]["labels"]]]
        lengths = [len(members[i]["input_ids"]) for i in order]
        assert batch["cu_seq_lens_q"].diff().tolist() == batch["cu_seq_lens_k"].diff().tolist() == lengths
        assert batch["position_ids"].tolist() == [[p for n in lengths for p in range(n)]]
        assert batch["max_length_q"] == batch["max_length_k"] == 8
        assert "attention_mask" not in batch
    held_out = collate(members)
    assert held_out["input_ids"].shape == held_out["attention_mask"].shape == (4, 5)


def test_rows_meant_for_one_sequence_are_padded_where_attention_needs_masks():
    members = items([4, 3])
    laid, plain = batch_of(EndToEnd(Encoded(members, [0, 1])).items, None), batch_of(members, None)
    assert "position_ids" not in laid
    assert all(torch.equal(laid[key], plain[key]) for key in ("input_ids", "attention_mask"))
    assert torch.equal(laid["labels"][:, 1:], plain["labels"][:, 1:])


@pytest.mark.parametrize("name", ["llama", "mistral, sliding window", "gpt-neox"])
def test_losses_and_gradients_by_lengths_are_those_of_padded_rows(name, monkeypatch):
    calls = []
    monkeypatch.setattr(torchs, "varlen_attn", formula(calls))
    varlen.register()
    members, collate = items([9, 14, 5, 11, 7]), PackedCollator(tiny.tokenizer(chat=False), by_lengths=True)
    found = []
    for attention, batch in (("sdpa", batch_of(members, None)), (VARLEN, collate(EndToEnd(Encoded(members)).items))):
        model = made(name, attention).train()
        loss = model(**batch).loss
        loss.backward()
        found.append((loss.item(), [p.grad for p in model.parameters() if p.grad is not None]))
    (alone, gradients), (together, of_laid) = found
    assert calls
    assert together == pytest.approx(alone, abs=1e-5)
    for a, b in zip(gradients, of_laid, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    check_apart(made(name, VARLEN), tiny.tokenizer(chat=False), by_lengths=True)


# -- runs -------------------------------------------------------------------------------------------------------------

PACKING = {"training__packing": True, "data__max_length": 80, "training__batch_size": 2, "training__epochs": 3,
           "training__max_steps": None, "training__save_steps": 1, "training__keep_checkpoints": 20}  # fmt: skip


def resumed_after(chosen, folder, model_folder):
    """Those of the chosen steps of a packed run after which a resumed one ends differently."""
    own = folder / "whole"
    own.mkdir()
    method = {"type": "lora", "r": 4, "lora_dropout": 0.1, "target_modules": "all-linear"}
    path = tiny.write_recipe(own, model_folder, method=method, evaluation={"enabled": False}, **PACKING)
    whole, heard = train(path)
    steps = whole.report["training"]["steps"]
    return steps, heard.notes, ends_otherwise(own, chosen)


STEPS = 18
IN_AND_BETWEEN_EPOCHS = (5, 6, 11)
REST = tuple(k for k in range(1, STEPS) if k not in IN_AND_BETWEEN_EPOCHS)


@pytest.mark.parametrize(
    "chosen", [IN_AND_BETWEEN_EPOCHS, pytest.param(REST, marks=pytest.mark.whole("steps between those"))], ids=str
)
def test_packed_run_takes_fewer_steps_and_resumes_to_the_bit(tmp_path, model_folder, child, chosen):
    steps, notes, different = child(resumed_after, chosen, tmp_path, model_folder)
    (said,) = [n for n in notes if n.startswith("packing: 24 rows in ")]
    sequences = int(said.split(" in ")[1].split()[0])
    assert sequences == 12
    assert steps == 3 * -(-sequences // 2) == STEPS
    assert different == []


def test_packed_run_learns_as_the_plain_one(tmp_path, model_folder, child):
    losses = {}
    for packing in (False, True):
        folder = tmp_path / str(packing)
        folder.mkdir()
        # All 24 rows in every step, so that both runs take the same steps.
        options = {**PACKING, "training__packing": packing, "training__batch_size": 24, "training__epochs": 10}
        file = tiny.write_recipe(folder, model_folder, **options, training__group_by_length=False)
        result, _ = child(train, file)
        lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
        losses[packing] = [line["loss"] for line in lines if "loss" in line]
    assert len(losses[True]) == 10
    assert losses[True] == pytest.approx(losses[False], abs=1e-4)  # rounding grows from step to step


REFUSED = {
    "task": {"task": "sequence_classification"},
    "task numbers": {"method": {"type": "poly", "n_tasks": 3}, "data__task_column": "task"},
    "prefixes": {"method": {"type": "prefix_tuning"}},
    "virtual tokens": {"method": {"type": "prompt_tuning"}},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_share_a_sequence_is_refused_before_training(name, tmp_path, model_folder, child):
    file = tiny.write_recipe(tmp_path, model_folder, **{"training__packing": True, **REFUSED[name]})
    with pytest.raises(RecipeError, match=r"training\.packing"):
        child(train, file)
    assert not (tmp_path / "out").exists()


def test_packing_is_off_unless_asked_for(tmp_path, model_folder):
    assert load_recipe(str(tiny.write_recipe(tmp_path, model_folder))).training.packing is None
    assert Heard().notes == []


def test_batches_of_few_shapes_hold_the_same_rows():
    tokenizer = tiny.tokenizer(chat=False)
    padded, laid = PackedCollator(tokenizer, recurring=True), PackedCollator(tokenizer, by_lengths=True, recurring=True)
    shapes = set()
    for lengths in ([9, 14], [3, 5], [16, 2], [11, 12]):
        rows = EndToEnd(Encoded(items(lengths), [0, 1])).items
        batch = laid(rows)
        plain = PackedCollator(tokenizer, by_lengths=True)(rows)
        tokens = sum(lengths)
        for key in ("input_ids", "labels"):
            assert batch[key][0, :tokens].tolist() == plain[key][0].tolist()
        assert (batch["labels"][0, tokens:] == -100).all()
        assert batch["cu_seq_lens_q"][:3].tolist() == plain["cu_seq_lens_q"].tolist()
        alone = [{key: row[key] for key in ("input_ids", "labels")} for row in rows]
        wide = padded(alone)
        assert wide["attention_mask"].sum(1).tolist() == lengths
        shapes.add((wide["input_ids"].shape, batch["input_ids"].shape, batch["cu_seq_lens_q"].shape))
    assert shapes == {((2, 16), (1, 32), (9,)), ((2, 16), (1, 16), (9,))}


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 100, 1000, 1025, 5000])
def test_a_length_that_comes_again_is_little_longer(tokens):
    assert tokens <= recurring_length(tokens) < tokens + max(16, tokens / 8 + 1)
    assert len({recurring_length(n) for n in range(4097, 8193)}) == 8
