"""Which attention a run asks for, by device and rows: `Device` is what one that is not here would answer."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from afina.devices import place as places
from afina.devices.found import Device
from afina.errors import RecipeError
from afina.train.data.arranged import packing
from afina.train.data.arranged.packing import EndToEnd
from afina.train.data.encode import Encoded
from afina.train.loop import fast_paths as module
from afina.train.recipe.settings import load_recipe

from ...kernels.cuda.test_varlen import formula
from .. import tiny
from .test_placed import CPU, H100, T4, Listener
from .test_run import train

ITEMS = [{"input_ids": list(range(5, 5 + n)), "attention_mask": [1] * n, "labels": [7] * n} for n in (2, 9, 3, 8)]
ROWS = Encoded(ITEMS, [0, 1, 2, 3])


def recipe_of(tmp_path, model_folder, **changes):
    return load_recipe(str(tiny.write_recipe(tmp_path, model_folder, training__batch_size=2, **changes)))


class Model:
    """Whose attention can be set."""

    device = torch.device("cpu")

    def __init__(self):
        self.config = SimpleNamespace(_attn_implementation=places.TORCH)

    def set_attn_implementation(self, name):
        self.config._attn_implementation = name


@pytest.fixture
def tried(monkeypatch):
    """The devices and layouts that were asked for; the model's attention becomes one by lengths."""
    asked = []

    def use_flash(model, device, *, packed=False):
        asked.append((device.name, packed))
        model.config._attn_implementation = places.VARLEN
        return "attention by lengths: on"

    monkeypatch.setattr(module, "use_flash", use_flash)
    monkeypatch.setattr(module, "speed_up", lambda model, **options: [])
    monkeypatch.setattr(module, "check_apart", lambda model, tokenizer, by_lengths: None)
    return asked


@pytest.mark.parametrize(
    ("device", "packing", "train", "asked"),
    [
        (H100, None, ROWS, [("cuda:0", False)]), (H100, True, ROWS, [("cuda:0", True)]),
        (H100, None, EndToEnd(ROWS), [("cuda:0", True)]), (CPU, True, ROWS, []), (CPU, None, ROWS, []),
    ],
)  # fmt: skip
def test_a_gpus_attention_is_asked_for_by_how_rows_lie(
    device, packing, train, asked, tried, tmp_path, model_folder, monkeypatch
):
    monkeypatch.setattr(module, "place", lambda wanted: device)
    told, model = Listener(), Model()
    recipe = recipe_of(tmp_path, model_folder, training__packing=packing)
    module.speed_up_run(recipe, model, None, SimpleNamespace(train=train), 1, told)
    assert tried == asked
    assert told.told[1:] == (["fast path: attention by lengths: on"] if asked else [])


def test_rows_that_would_see_each_other_are_padded_after_all(tried, tmp_path, model_folder, monkeypatch):
    def refuse(model, tokenizer, by_lengths):
        assert by_lengths
        raise RecipeError("packed rows are not kept apart by Model", where="training.packing")

    monkeypatch.setattr(module, "place", lambda wanted: H100)
    monkeypatch.setattr(module, "check_apart", refuse)
    told, model = Listener(), Model()
    data = SimpleNamespace(train=EndToEnd(ROWS))
    module.speed_up_run(recipe_of(tmp_path, model_folder), model, None, data, 1, told)
    assert model.config._attn_implementation == places.TORCH
    (padded,) = [t for t in told.told if t.startswith("batches are padded after all: ")]
    assert "not kept apart" in padded


@pytest.mark.parametrize(
    ("device", "changes", "processes", "spread", "replayed"),
    [
        (H100, {}, 1, False, True), (CPU, {}, 1, False, False), (H100, {"training__replay": False}, 1, False, False),
        (H100, {"training__gradient_checkpointing": True}, 1, False, True), (H100, {}, 2, False, True),
        (H100, {"distributed": "ddp"}, 2, False, True), (H100, {"distributed": "fsdp2"}, 2, True, False),
        (H100, {"distributed": "zero2"}, 2, False, False),
        (H100, {"training__offload": "activations"}, 1, False, False),
    ],
)  # fmt: skip
def test_steps_are_replayed_on_a_gpu_where_each_process_has_the_whole_model(
    device, changes, processes, spread, replayed, tried, tmp_path, model_folder, monkeypatch
):
    asked = []
    monkeypatch.setattr(module, "place", lambda wanted: device)
    monkeypatch.setattr(module, "size", lambda: processes)
    monkeypatch.setattr(module, "spread", lambda: spread)
    monkeypatch.setattr(module, "forget_passes", lambda model: None)
    monkeypatch.setattr(module, "speed_up", lambda model, **options: asked.append(options["replay"]) or [])
    recipe = recipe_of(tmp_path, model_folder, **changes)
    module.speed_up_run(recipe, Model(), None, SimpleNamespace(train=ROWS), 1, Listener())
    assert asked == [replayed]


# -- which rows are laid end to end -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "changes", "rows", "laid"),
    [
        (H100, {}, ROWS, True), (CPU, {}, ROWS, False), (T4, {}, ROWS, False),
        (H100, {"model__dtype": "float32"}, ROWS, False), (H100, {"training__packing": False}, ROWS, False),
        (H100, {"training__group_by_length": True}, ROWS, False), (H100, {"training__fast": False}, ROWS, False),
        (H100, {"training__cache_frozen": True}, ROWS, False),
        (H100, {"data__task_column": "task"}, ROWS, False), (H100, {}, Encoded([ITEMS[1]] * 4, [0] * 4), False),
        (H100, {}, Encoded(), False),
    ],
)  # fmt: skip
def test_rows_lie_end_to_end_on_gpus_where_padding_would_be_much_and_nothing_else_is_asked(
    device, changes, rows, laid, tmp_path, model_folder, monkeypatch
):
    monkeypatch.setattr(packing, "place", lambda wanted: device)
    told = Listener()
    recipe = recipe_of(tmp_path, model_folder, **{"model__dtype": "bfloat16", **changes})
    found = packing.end_to_end(recipe, rows, told)
    assert (found is not None) == laid == bool(told.told)
    if found is not None:
        assert told.told[0].startswith("batches of rows end to end, without the ")
        assert found.source == rows.source
        assert [i["position_ids"] for i in found.items] == [list(range(len(i["input_ids"]))) for i in ITEMS]


def test_a_device_without_attention_by_lengths_leaves_the_choice_to_grouping(tmp_path, model_folder, monkeypatch):
    monkeypatch.setattr(packing, "place", lambda wanted: Device("cuda:0", "a GPU", capability=(9, 0)))
    monkeypatch.setattr(packing, "packed_attention", lambda device, dtype: places.TORCH)
    recipe = recipe_of(tmp_path, model_folder, model__dtype="bfloat16")
    assert packing.end_to_end(recipe, ROWS, Listener()) is None


# -- a run ------------------------------------------------------------------------------------------------------------


def trained_by_lengths(recipe):
    """A run whose attention goes by lengths, with the formula in the kernel's place."""
    from torch.nn.attention import varlen as torchs

    from afina.kernels.cuda import varlen

    calls = []

    def use_flash(model, device, *, packed):
        varlen.register()
        model.get_base_model().set_attn_implementation(places.VARLEN)
        return f"attention by lengths: {'on' if packed else 'off'}"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchs, "varlen_attn", formula(calls))
        patch.setattr(packing, "packed_attention", lambda device, dtype: places.VARLEN)
        patch.setattr(module, "place", lambda wanted: H100)
        patch.setattr(module, "use_flash", use_flash)
        result, heard = train(recipe)
    return result, heard, len(calls)


def test_a_run_with_rows_end_to_end_is_the_padded_one(tmp_path, model_folder, child):
    found = {}
    for name, run in (("padded", train), ("laid", trained_by_lengths)):
        folder = tmp_path / name
        folder.mkdir()
        asked = {} if name == "laid" else {"training__packing": False, "training__group_by_length": False}
        file = tiny.write_recipe(folder, model_folder, training__max_steps=3, **asked)
        uneven = [{"text": "n" * (1 + i * 7 % 30), "label": "odd" if i % 2 else "even"} for i in range(24)]
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in uneven), encoding="utf-8")
        found[name] = child(run, file)
    (padded, _), (laid, heard, calls) = found["padded"], found["laid"]
    assert calls >= 3 * 2  # steps and layers
    assert any(n.startswith("batches of rows end to end, without the ") for n in heard.notes)
    assert laid.after.loss == pytest.approx(padded.after.loss, abs=1e-4)
    assert laid.before.loss == padded.before.loss != laid.after.loss
    assert laid.report["training"]["tokens"] == padded.report["training"]["tokens"]
    a, b = (load_file(r.folder / "adapter_model.safetensors") for r in (padded, laid))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-2, atol=1e-3)
