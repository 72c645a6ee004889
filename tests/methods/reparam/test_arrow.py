"""Arrow: tokens go to the experts whose direction they have most of; general knowledge is subtracted on the way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import afina
from afina.core.hosts.host import hosts
from afina.errors import CheckpointError, ConfigError, NotMergeable, TargetError
from afina.methods.reparam.arrow import direction

from .experts import IDS, base, logits, save_expert

REFERENCE = pytest.importorskip("peft", reason="the reference is the oracle")
CASES: list[dict[str, Any]] = [{"top_k": 2}, {"top_k": 1}, {"top_k": 3, "router_temperature": 0.2},
                               {"top_k": 2, "use_gks": True}]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three experts and two general adapters."""
    root = tmp_path_factory.mktemp("arrow")
    return [save_expert(root / str(i), i, lora_alpha=4 + i) for i in range(5)]


def routed(folders: list[str], library: Any = afina, **options: Any) -> Any:
    settings = library.ArrowConfig(rng_seed=1, **options)
    general = folders[3:] if settings.use_gks else None
    return library.create_arrow_model(base(), folders[:3], settings, general).eval()


@pytest.mark.parametrize("options", CASES, ids=str)
def test_outputs_are_the_references(options: dict[str, Any], folders: list[str]) -> None:
    mine, theirs = routed(folders, **options), routed(folders, REFERENCE, **options)
    expected = logits(theirs)
    assert (logits(mine) - expected).abs().max() < 1e-5
    assert (expected - logits(base())).abs().max() > 1e-2
    assert list(mine.peft_config) == list(theirs.peft_config)
    assert mine.active_adapters == ["arrow_router"]
    # The reference counts the router's A and B, which nothing uses.
    assert mine.get_nb_trainable_parameters()[0] == 0
    assert mine.get_nb_trainable_parameters()[1] == theirs.get_nb_trainable_parameters()[1]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_files_of_either_library_are_read_by_the_other(
    options: dict[str, Any], folders: list[str], tmp_path: Path
) -> None:
    mine, theirs = routed(folders, **options), routed(folders, REFERENCE, **options)
    mine.save_pretrained(tmp_path / "mine")
    theirs.save_pretrained(tmp_path / "theirs")  # before its first forward, which changes the experts

    # The reference cannot load a router, whose experts' names it does not read; it makes a new one.
    saved = [str(tmp_path / "mine" / n) for n in mine.peft_config if n != "arrow_router"]
    again = routed(saved, REFERENCE, **options)
    assert (logits(again) - logits(mine)).abs().max() < 1e-5
    files = [load_file(tmp_path / who / "arrow_router" / "adapter_model.safetensors") for who in ("mine", "theirs")]
    assert {k: t.shape for k, t in files[0].items()} == {k: t.shape for k, t in files[1].items()}

    first, *rest = theirs.peft_config
    read = afina.PeftModel.from_pretrained(base(), tmp_path / "theirs" / first, adapter_name=first)
    for name in rest:
        read.load_adapter(tmp_path / "theirs" / name, name)
    read.set_adapter("arrow_router")
    assert (logits(read) - logits(theirs)).abs().max() < 1e-5


def test_direction_is_the_first_right_singular_vector() -> None:
    for rank, inputs, outputs in ((4, 16, 12), (6, 5, 3)):
        A, B = torch.randn(rank, inputs), torch.randn(outputs, rank)
        exact = torch.linalg.svd(B @ A)[2][0]
        assert (direction(A, B) @ exact).abs() == pytest.approx(1, abs=1e-5)
    assert not direction(torch.randn(4, 16), torch.zeros(12, 4)).any()


def test_routing_follows_experts_that_change_join_and_leave(folders: list[str]) -> None:
    model = routed(folders, top_k=2)
    before = logits(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".task_1." in name:
                parameter.mul_(-2.0)
    changed = logits(model)
    assert (changed - before).abs().max() > 1e-3
    fresh = copy.deepcopy(model)
    for _, host in hosts(fresh):
        host.adapter("arrow_router").seen = ()
    assert torch.equal(logits(fresh), changed)

    model = routed(folders, top_k=2)
    model.load_adapter(folders[3], "task_3")
    joined = logits(model)
    four = afina.create_arrow_model(base(), folders[:4], afina.ArrowConfig(top_k=2))
    assert torch.equal(joined, logits(four))
    assert (joined - before).abs().max() > 1e-3
    model.delete_adapter("task_3")
    assert torch.equal(logits(model), before)


def test_subtraction_leaves_the_experts_as_they_are(folders: list[str], tmp_path: Path) -> None:
    model = routed(folders, top_k=2, use_gks=True)
    out = logits(model)
    assert (out - logits(routed(folders, top_k=2))).abs().max() > 1e-3
    model.set_adapter("task_0")
    alone = afina.PeftModel.from_pretrained(base(), folders[0])
    assert torch.equal(logits(model), logits(alone))
    model.set_adapter("arrow_router")
    assert torch.equal(logits(model), out)


def test_generation_with_and_without_a_cache_is_the_same(folders: list[str]) -> None:
    model = routed(folders, top_k=2)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    cached = model.generate(input_ids=IDS, use_cache=True, **options)
    assert torch.equal(cached, model.generate(input_ids=IDS, use_cache=False, **options))


def test_experts_train_through_the_router_when_told_to(folders: list[str]) -> None:
    def gradients(checkpointed: bool) -> dict[str, torch.Tensor]:
        model = routed(folders, top_k=3).train()
        model.set_requires_grad(["task_0", "task_1"])
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(input_ids=IDS, labels=IDS).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    plain, again = gradients(False), gradients(True)
    assert {n.split(".adapters.")[1].split(".")[0] for n in plain} == {"task_0", "task_1"}
    assert all(g.any() and torch.equal(g, again[n]) for n, g in plain.items())


def test_disabled_and_unloaded_are_the_bases_bits_and_merging_is_refused(folders: list[str]) -> None:
    model = routed(folders, top_k=2)
    with pytest.raises(NotMergeable):
        model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(base()))
    assert torch.equal(logits(model.unload()), logits(base()))


def test_mistakes_are_told_and_leave_the_model_without_adapters(folders: list[str], tmp_path: Path) -> None:
    dora = save_expert(tmp_path / "dora", 8, use_dora=True)
    other = save_expert(tmp_path / "other", 9, target_modules=["q_proj"])
    ranked = save_expert(tmp_path / "ranked", 10, r=2)
    create: Callable[..., Any] = afina.create_arrow_model
    attempts: list[tuple[list[str], dict[str, Any], list[str] | None, type[Exception]]] = [
        ([], {"top_k": 1}, None, ConfigError),
        (folders[:2], {}, None, ConfigError),
        (folders[:2], {"top_k": 1, "use_gks": True}, None, ConfigError),
        ([folders[0], str(tmp_path / "nowhere")], {"top_k": 1}, None, CheckpointError),
        ([folders[0], other], {"top_k": 1}, None, TargetError),
    ]
    for paths, options, general, error in attempts:
        plain = base()
        with pytest.raises(error):
            create(plain, paths, afina.ArrowConfig(**options), general)
        assert not list(hosts(plain))
    for paths, general, options in (([dora], None, {}), (folders[:1], [ranked], {"use_gks": True})):
        model = create(base(), paths, afina.ArrowConfig(top_k=1, **options), general)
        with pytest.raises(ConfigError, match=r"rout|rank"):
            model(input_ids=IDS)
    for options in ({"top_k": 0}, {"router_temperature": 0.0}):
        with pytest.raises(ConfigError):
            afina.ArrowConfig(**options)
    lonely = afina.get_peft_model(nn.Sequential(nn.Linear(4, 4)),
                                  afina.LoraConfig(target_modules=["0"], arrow_config=afina.ArrowConfig()))  # fmt: skip
    with pytest.raises(ConfigError, match="fewer experts"):
        lonely(torch.zeros(2, 4))


def test_bfloat16_base_routes_in_float32(folders: list[str]) -> None:
    settings = afina.ArrowConfig(top_k=2)
    half = afina.create_arrow_model(base().bfloat16(), folders[:3], settings, allow_other_base=True)
    out = logits(half)
    assert out.dtype == torch.bfloat16
    assert (out.float() - logits(routed(folders, top_k=2))).abs().max() < 0.05  # bf16 has 8 bits


def test_router_has_the_experts_dtype_where_adapters_keep_the_bases(folders: list[str]) -> None:
    model = afina.create_arrow_model(base().bfloat16(), folders[:3], afina.ArrowConfig(top_k=2), allow_other_base=True,
                                     autocast_adapter_dtype=False)  # fmt: skip
    assert {p.dtype for n, p in model.named_parameters() if ".adapters." in n} == {torch.bfloat16}
    whole = afina.create_arrow_model(base().bfloat16(), folders[:3], afina.ArrowConfig(top_k=2), allow_other_base=True)
    assert torch.allclose(logits(model), logits(whole), atol=0.1)
    assert not torch.equal(logits(model), logits(base().bfloat16()))


def test_experts_of_another_dtype_than_the_router_are_routed(folders: list[str]) -> None:
    model = afina.create_arrow_model(base(), folders[:3], afina.ArrowConfig(top_k=2))
    wanted = logits(model)
    for name, parameter in model.named_parameters():
        if ".task_1." in name:
            parameter.data = parameter.data.double()
    assert torch.allclose(logits(model), wanted, atol=1e-6)


def test_compiles_without_a_graph_break(folders: list[str]) -> None:
    torch._dynamo.reset()
    model = routed(folders, top_k=2, use_gks=True)
    expected = logits(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(logits(compiled), expected, atol=1e-5)
