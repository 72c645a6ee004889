"""Every registered method on whole models of every shape: what is saved is what is loaded; the base stays itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import afina
from afina.core.config import CONFIG_NAME, methods
from afina.core.disk.checkpoint import WEIGHTS_NAME
from afina.errors import AfinaError, CheckpointError, NotMergeable

from ..train.child import Child
from . import whole
from .whole import REFUSED, SHAPES, WIDTH, Case, base_tensors, copies, is_prompt, options_of

EVERY = [pytest.param(*key, id="-".join(key)) for key in (
    (c.method, c.shape.name, c.option) for c in whole.cases() if (c.method, c.shape.name) not in REFUSED
)]  # fmt: skip


def each_case(test: Any) -> Any:
    """Parametrise over every method, shape and option."""
    return pytest.mark.product("whole")(pytest.mark.parametrize(("method", "shape", "option"), EVERY)(test))


CLOSE = 2e-5
"""Logits of two float32 models with the same weights, in other orders of summing."""


def case_of(method: str, shape: str, option: str) -> Case:
    return Case(method, SHAPES[shape], option, dict(options_of(method, SHAPES[shape]))[option])


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What routers need beside them."""
    return tmp_path_factory.mktemp("experts")


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=CLOSE)


def untouched(tensors: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> list[str]:
    """Names of the base's tensors whose bits are no longer those of before."""
    return [n for n, t in tensors.items() if not torch.equal(t, before[n])]


def trains(model: Any) -> set[str]:
    """Names of what trains, whichever hosts of other adapters stand around it."""
    found = (n for n, p in model.named_parameters() if p.requires_grad)
    return {n.replace(".base_layer", "").replace(".original_module", "") for n in found}


def test_every_registered_method_is_in_the_table() -> None:
    assert {c.method for c in whole.cases()} == {*methods()} - {"FULL"}
    assert {m for m, _ in REFUSED} <= {*methods()}


@pytest.mark.parametrize(("method", "shape"), list(REFUSED))
def test_a_method_that_is_not_for_a_model_says_so(method: str, shape: str, beside: Path) -> None:
    case = case_of(method, shape, "plain")
    base = case.shape.build(0, WIDTH)
    before = case.logits(base)
    with pytest.raises(AfinaError, match=REFUSED[method, shape]):
        case.logits(case.adapted(beside))
    assert torch.equal(case.logits(base), before)


@each_case
def test_loaded_it_says_the_same_and_no_bit_of_the_base_has_changed(
    method: str, shape: str, option: str, tmp_path: Path, beside: Path
) -> None:
    case = case_of(method, shape, option)
    trained = case.adapted(beside)
    wanted, plain = case.logits(trained), case.logits(case.shape.build(0, WIDTH))
    assert not same(wanted, plain), "the adapter has no effect"
    trained.save_pretrained(tmp_path)
    for is_trainable in (False, True):
        base = case.shape.build(0, WIDTH)
        tensors = base_tensors(base)
        before = copies(tensors)
        loaded = case.loaded(tmp_path, beside, base, is_trainable=is_trainable).eval()
        assert same(case.logits(loaded), wanted)
        assert bool(trains(loaded)) == is_trainable
        if is_trainable:
            assert trains(loaded) == trains(trained)
        loaded.get_base_model().tie_weights()  # libraries do whenever they like
        assert same(case.logits(loaded), wanted)
        with loaded.disable_adapter():
            assert torch.equal(case.logits(loaded), plain)
        assert not untouched(tensors, before)
        held = afina.get_peft_model_state_dict(loaded)
        for key, tensor in load_file(tmp_path / WEIGHTS_NAME).items():  # every tensor of the file was read
            assert torch.equal(held[key], tensor), key
        unloaded = loaded.unload()
        assert not untouched(base_tensors(unloaded), before)
        assert torch.equal(case.logits(unloaded), plain)


@each_case
def test_loaded_beside_another_it_moves_nothing_but_itself(
    method: str, shape: str, option: str, tmp_path: Path, beside: Path
) -> None:
    case = case_of(method, shape, option)
    trained = case.adapted(beside)
    wanted, plain = case.logits(trained), case.logits(case.shape.build(0, WIDTH))
    trained.save_pretrained(tmp_path)
    base = case.shape.build(0, WIDTH)
    tensors = base_tensors(base)
    before = copies(tensors)
    model = afina.get_peft_model(base, afina.LoraConfig(r=2, init_lora_weights=False, task_type=case.shape.task), "own")
    model.eval()
    own, learning = case.logits(model), trains(model)
    more = {"adapters": whole.experts(case.shape, beside)} if case.routes else {}
    model.load_adapter(tmp_path, "other", **more)
    assert torch.equal(case.logits(model), own)
    assert trains(model) == learning
    model.set_adapter("other")
    assert same(case.logits(model), wanted)
    model.set_adapter("own")
    assert torch.equal(case.logits(model), own)
    assert trains(model) == learning
    with model.disable_adapter():
        assert torch.equal(case.logits(model), plain)
    assert trains(model) == learning
    model.delete_adapter("other")
    assert torch.equal(case.logits(model), own)
    assert trains(model) == learning
    assert not untouched(tensors, before)


@each_case
def test_a_file_for_another_base_or_with_a_tensor_less_is_refused_and_leaves_all_as_it_was(
    method: str, shape: str, option: str, tmp_path: Path, beside: Path
) -> None:
    case = case_of(method, shape, option)
    case.adapted(beside).save_pretrained(tmp_path / "own")
    for seed, width in ((7, WIDTH), (0, 2 * WIDTH)):
        base = case.shape.build(seed, width)
        tensors, learning = base_tensors(base), trains(base)
        before = copies(tensors)
        with pytest.raises(AfinaError):
            case.loaded(tmp_path / "own", beside, base)
        assert not untouched(base_tensors(base), before)
        assert trains(base) == learning
    with safe_open(tmp_path / "own" / WEIGHTS_NAME, "pt") as file:
        notes = json.loads(file.metadata()["afina"])
    state = load_file(tmp_path / "own" / WEIGHTS_NAME)
    notes.pop("tensors_sha256", None)
    for number, key in enumerate(sorted(state)[:: max(1, len(state) // 4)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copy(tmp_path / "own" / CONFIG_NAME, folder)
        save_file({k: t for k, t in state.items() if k != key}, folder / WEIGHTS_NAME, {"afina": json.dumps(notes)})
        base = case.shape.build(0, WIDTH)
        before = copies(base_tensors(base))
        if key == "prompt_embeddings" or key.startswith("prompt_encoder."):
            continue  # either the table or what computes it is enough: the next test
        with pytest.raises(CheckpointError, match="missing"):
            case.loaded(folder, beside, base)
        assert not untouched(base_tensors(base), before)


@pytest.mark.parametrize("method", [m for m in methods() if is_prompt(m)])
def test_a_file_of_virtual_tokens_with_a_tensor_less_is_refused_or_means_the_same(method: str, tmp_path: Path) -> None:
    case = case_of(method, "decoder", "plain")
    trained = case.adapted(tmp_path)
    wanted = case.logits(trained)
    trained.save_pretrained(tmp_path / "own")
    state = load_file(tmp_path / "own" / WEIGHTS_NAME)
    held = 0
    for number, key in enumerate(sorted(state)):
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copy(tmp_path / "own" / CONFIG_NAME, folder)
        save_file({k: t for k, t in state.items() if k != key}, folder / WEIGHTS_NAME)
        try:
            loaded = case.loaded(folder, tmp_path)
        except CheckpointError:
            continue
        held += 1
        assert same(case.logits(loaded), wanted), key
    assert held < len(state)  # not all of it can be done without


@each_case
def test_inference_mode_in_the_file_makes_no_difference(
    method: str, shape: str, option: str, tmp_path: Path, beside: Path
) -> None:
    case = case_of(method, shape, option)
    trained = case.adapted(beside)
    trained.save_pretrained(tmp_path)
    values = json.loads((tmp_path / CONFIG_NAME).read_text())
    assert values["inference_mode"] is True
    (tmp_path / CONFIG_NAME).write_text(json.dumps({**values, "inference_mode": False}))
    assert same(case.logits(case.loaded(tmp_path, beside)), case.logits(trained))


@each_case
def test_what_it_leaves_of_a_base_in_bfloat16_runs_in_bfloat16(
    method: str, shape: str, option: str, beside: Path
) -> None:
    case = case_of(method, shape, option)
    before = {n: t.dtype for n, t in base_tensors(case.shape.build(0, WIDTH).bfloat16()).items()}
    model = case.adapted(beside, dtype=torch.bfloat16)
    plain = case.logits(case.shape.build(0, WIDTH).bfloat16())
    assert not torch.equal(case.logits(model), plain), "the adapter has no effect"
    try:
        left = model.merge_and_unload()
    except NotMergeable:
        left = model.unload()
    assert {n: t.dtype for n, t in base_tensors(left).items() if n in before} == before
    assert case.logits(left).dtype == torch.bfloat16


def read_again(folder: Path, experts: Path) -> dict[str, torch.Tensor]:
    """What the adapters in a folder say."""
    torch.set_num_threads(1)
    found = {p.name: case_of(*p.name.split("+")) for p in sorted(folder.iterdir())}
    return {name: case.logits(case.loaded(folder / name, experts)) for name, case in found.items()}


ALONE = ("tied", "classifier")


@pytest.mark.parametrize(
    "shape", [s if s in ALONE else pytest.param(s, marks=pytest.mark.whole("each kind once")) for s in SHAPES]
)
def test_another_process_reads_the_same(shape: str, tmp_path: Path, beside: Path, child: Child) -> None:
    wanted = {}
    for case in whole.cases():
        if case.shape.name == shape and (case.method, shape) not in REFUSED and case.option in ("plain", "embedding"):
            model, name = case.adapted(beside), f"{case.method}+{shape}+{case.option}"
            model.save_pretrained(tmp_path / "files" / name)
            wanted[name] = case.logits(model)
    found = child(read_again, tmp_path / "files", beside)
    assert found.keys() == wanted.keys()
    assert not [n for n in wanted if not same(found[n], wanted[n])]
