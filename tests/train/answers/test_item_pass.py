"""What one pass says of encoded items, by a model whose outputs are a table and by a small real one."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from afina import LoraConfig, PromptTuningConfig, get_peft_model
from afina.train.answers.item_pass import read_items

from .test_judge import ITEMS, ROWS, TABLE, Table, collate, item, log_prob


@pytest.mark.parametrize("encoder", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
def test_loss_of_an_item_is_the_mean_over_its_trained_tokens(shifted, encoder):
    model = Table(encoder)
    found = [one.loss for one in read_items(model, collate, ITEMS, shifted=shifted, batch_size=3)]
    for each, got in zip(ITEMS, found, strict=True):
        ids, labels = each["input_ids"], each["labels"]
        pairs = zip(ids[:-1], labels[1:], strict=True) if shifted else zip(ids, labels, strict=True)
        losses = [-log_prob(token, label) for token, label in pairs if label != -100]
        assert got == pytest.approx(sum(losses) / max(1, len(losses)), abs=1e-5)
    assert model.shapes == [(3, 3), (1, 4)]  # of like length
    assert model.training


def test_loss_of_a_class_is_that_of_its_item():
    def classes(items):
        return {**collate(items), "labels": torch.tensor([e["labels"][0] for e in items])}

    items = [item(row, [i % 4] * len(row)) for i, row in enumerate(ROWS)]
    found = [one.loss for one in read_items(Table(pooled=True), classes, items, shifted=False, batch_size=3)]
    for i, (row, got) in enumerate(zip(ROWS, found, strict=True)):
        assert got == pytest.approx(-float(TABLE[row].sum(0)[:4].log_softmax(-1)[i % 4]), abs=1e-5)


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=320, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.3,
    ))  # fmt: skip


ADAPTERS = {
    "none": None,
    "layers": LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False),
    "head": LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False),
    "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_outputs_at_the_judged_places_alone_say_what_all_outputs_say(kind):
    model = llama() if ADAPTERS[kind] is None else get_peft_model(llama(), ADAPTERS[kind])
    shapes = []
    base = model if ADAPTERS[kind] is None else model.get_base_model()
    base.register_forward_hook(lambda _, given, out: shapes.append(out.logits.shape[1]))
    draw = torch.Generator().manual_seed(1)
    items = []
    for length, answer in ((9, 2), (4, 3), (12, 1), (7, 4), (5, 0)):
        ids = torch.randint(1, 64, (length,), generator=draw).tolist()
        items.append(item(ids, [-100] * (length - answer) + ids[length - answer :] if answer else [-100] * length))
    found = read_items(model, collate, items, shifted=True, batch_size=2)
    narrow = list(shapes)
    for each, got in zip(items, found, strict=True):
        with torch.no_grad():
            out = model(input_ids=torch.tensor([each["input_ids"]]), labels=torch.tensor([each["labels"]]))
        trained = [n for n, label in enumerate(each["labels"]) if label != -100]
        if not trained:
            assert got == (0.0, True)
            continue
        assert got.loss == pytest.approx(float(out.loss), abs=1e-5)
        said = out.logits[0, -len(each["input_ids"]) :].argmax(1).tolist()
        assert got.expected is ([said[n - 1] for n in trained] == [each["input_ids"][n] for n in trained])
    assert (max(narrow) < 8) is (kind != "head")  # where the head is adapted all positions are made


def test_what_the_model_would_write_is_expected_and_one_other_token_is_not():
    model = llama()
    prompt = [5, 9, 3]
    written = model.generate(torch.tensor([prompt]), max_new_tokens=4, do_sample=False, eos_token_id=None)[0].tolist()
    for place in (None, 3, 6):
        ids = [t if n != place else (t + 1) % 64 for n, t in enumerate(written)]
        (found,) = read_items(model, collate, [item(ids, [-100] * 3 + ids[3:])], shifted=True, batch_size=1)
        assert found.expected is (place is None)
