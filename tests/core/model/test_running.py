"""What methods add to the loss counts once a step, into however many batches the step is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import afina
from afina.core.config import methods
from afina.core.model.running import together

from ...battery.whole import SHAPES, Case, options_of
from ..tiny import llama

IDS = torch.randint(3, 30, (4, 7), generator=torch.Generator().manual_seed(0))
LABELS = IDS.clone()
LABELS[0, :5] = LABELS[2, :2] = -100


def adding() -> list[str]:
    """Every method that adds to the loss as it comes."""
    found = []
    for name in methods():
        kind: Any = methods()[name].implementation
        plain = Case(name, SHAPES["decoder"], "plain", {})
        if getattr(kind, "has_penalty", False) and "has_penalty" in dir(kind.for_config(plain.config())):
            found.append(name)
    return found


def parts(model: Any, **more: Any) -> tuple[float, float]:
    """The loss of four rows together, and the sum of those of one and three, each told the tokens of all."""
    items = (LABELS[:, 1:] != -100).sum()

    def loss(rows: slice) -> float:
        given = {"input_ids": IDS[rows], "labels": LABELS[rows], "num_items_in_batch": items}
        return float(model(**given).loss)

    return loss(slice(0, 4)), loss(slice(0, 1)) + loss(slice(1, 4))


def test_there_are_such_methods() -> None:
    assert {"ADALORA", "SHADOW"} <= set(adding())


@pytest.mark.parametrize("name", adding())
def test_a_step_in_two_batches_has_the_loss_of_one(name: str, tmp_path: Path) -> None:
    case = Case(name, SHAPES["decoder"], "plain", dict(options_of(name, SHAPES["decoder"]))["plain"])
    model = case.adapted(tmp_path).train()
    together, apart = parts(model)
    assert apart == pytest.approx(together, rel=1e-5)
    with torch.no_grad():
        plain = float(model.eval()(input_ids=IDS, labels=LABELS).loss)
    assert abs(together - plain) > 1e-4  # something was added


def test_a_penalty_of_a_variant_counts_once_too() -> None:
    config = afina.LoraConfig(r=4, target_modules=["q_proj"], kasa_config=afina.KasaConfig(beta=1.0, gamma=1.0))
    together, apart = parts(afina.get_peft_model(llama(), config).train())
    assert apart == pytest.approx(together, rel=1e-5)


@pytest.mark.parametrize("target_modules", [["q_proj"], ["q_proj", "lm_head"]])
def test_what_is_cut_out_for_the_vocabulary_is_laid_together(target_modules: list[str]) -> None:
    model = afina.get_peft_model(llama(), afina.LoraConfig(target_modules=target_modules, init_lora_weights=False))
    head, lies, outputs = model.get_output_embeddings(), [], []
    watch = head.register_forward_hook(lambda _, given, out: lies.append(given[0].is_contiguous()))
    try:
        with torch.no_grad():
            whole = model(input_ids=IDS).logits
            outputs.append(model(input_ids=IDS, logits_to_keep=2).logits)
            model.generate(input_ids=IDS, max_new_tokens=2, do_sample=False)
            assert lies == [True] * 4
            outputs.append(model.get_base_model()(input_ids=IDS, logits_to_keep=2).logits)
            assert lies[4:] == [False]  # called past our model it gets what was cut out as it lies there
    finally:
        watch.remove()
    for found in outputs:
        torch.testing.assert_close(found, whole[:, -2:])
    assert not head._forward_pre_hooks


def test_models_without_a_vocabulary_have_nothing_to_lay_together() -> None:
    class Refuses(torch.nn.Module):
        def get_output_embeddings(self) -> None:
            raise NotImplementedError

    for base in (torch.nn.Linear(2, 2), Refuses()):
        with together(base):
            assert not base._forward_pre_hooks


@pytest.mark.parametrize(("places", "hooks"), [(None, 0), (0, 0), (2, 1), (torch.tensor([1, 3]), 1)])
def test_the_head_stays_plain_where_nothing_is_cut_out_for_it(places: Any, hooks: int) -> None:
    model = afina.get_peft_model(llama(), afina.LoraConfig(target_modules=["q_proj"]))
    head, seen = model.get_output_embeddings(), []
    base = model.get_base_model()
    base.register_forward_pre_hook(lambda *_: seen.append(len(head._forward_pre_hooks)))
    model(input_ids=IDS, **({} if places is None else {"logits_to_keep": places}))
    assert seen == [hooks]
