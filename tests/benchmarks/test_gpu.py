"""The measuring for GPUs runs on a processor in miniature, and marks what was not the same thing."""

from __future__ import annotations

import json

import pytest
import torch
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import contenders, measure
from benchmarks.gpu.page import page
from benchmarks.gpu.rows import EQUAL, FAST, LENGTHS, PADDED, REPLAYED, ROWS

from afina.kernels import speed
from afina.kernels.updates.epilogue import TILES
from afina.kernels.updates.wide import ADD, CARRY


@pytest.mark.whole
def test_rows_are_measured_and_kept_with_loss_and_gradient_beside_their_times(tmp_path, capsys):
    names = ["8b-qlora", "1b-packed", "1b-adapters", "8b-int8"]
    command.main([*names, "--device", "cpu", "--tiny", "--results", str(tmp_path)])
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found["rows"]) == names
    qlora = found["rows"]["8b-qlora"]["contenders"]
    for who in ("peft", "afina + speed_up, loss alone"):
        assert qlora[who]["ms"] > 0
        assert qlora[who]["beyond_mib"] is None
        assert qlora[who]["loss"] == pytest.approx(qlora["peft"]["loss"], rel=1e-2)
        assert qlora[who]["gradient_norm"] == pytest.approx(qlora["peft"]["gradient_norm"], rel=2e-2) != 0
    assert "why" in qlora["peft + liger"]
    few = found["rows"]["8b-int8"]["contenders"]
    assert few["afina + speed_up, loss alone"]["gradient_norm"] == pytest.approx(few["peft"]["gradient_norm"], rel=2e-2)
    packed = found["rows"]["1b-packed"]["contenders"]
    assert packed[LENGTHS]["gradient_norm"] == pytest.approx(packed[PADDED]["gradient_norm"], rel=1e-2)
    assert packed[LENGTHS]["said"][0].startswith("attention by lengths: off")
    assert found["profile"]["operations"][0]["ms"] > 0
    printed = capsys.readouterr().out
    assert "**8b-qlora**: floor " in printed
    assert f"A step of {found['profile']['who']} in {found['profile']['row']}, the slowest row" in printed


def test_after_the_time_is_over_no_row_is_begun(capsys):
    command.main(["1b-packed", "--device", "cpu", "--tiny", "--seconds", "-1"])
    assert "Not measured, because the time was over: 1b-packed" in capsys.readouterr().out


def test_without_a_gpu_the_figures_are_not_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device here"):
        command.main(["1b"])


def test_a_contender_that_fails_leaves_the_others_measured(monkeypatch):
    def fails(who, row, device, tiny):
        if who == PADDED:
            raise RuntimeError("out of\nmemory")
        return {"ms": 1.0}

    monkeypatch.setattr("benchmarks.gpu.measure.measured", fails)
    found = command._row("1b-packed", "cpu", True, [])["contenders"]
    assert found[PADDED] == {"why": "RuntimeError: out of memory"}
    assert found[LENGTHS] == {"ms": 1.0}


@pytest.mark.parametrize("name", ROWS)
def test_every_row_has_batches_of_the_tokens_that_its_floor_counts(name):
    row = ROWS[name].tiny()
    tokens = {who: measure.batch(who, row, "cpu", True)["input_ids"].numel() for who in row.contenders}
    flat = measure.batch(LENGTHS, row, "cpu", True)["input_ids"].numel()
    assert {n for who, n in tokens.items() if who != PADDED} <= {flat, flat - 1}
    assert (tokens.get(PADDED, flat) > flat) == row.lengths


def test_both_libraries_start_from_the_same_numbers():
    row = ROWS["1b"].tiny()
    norms = [measure.first_step(contenders.adapted(who, row, "cpu", True)[0], measure.batch(who, row, "cpu", True))
             for who in ("peft", "afina")]  # fmt: skip
    assert norms[0] == pytest.approx(norms[1], rel=1e-2)
    assert norms[0]["gradient_norm"] > 0


@pytest.mark.parametrize("name", ["1b-adapters", "1b-adapters-nf4"])
def test_with_an_adapter_for_each_row_too_all_of_which_have_gradients(name):
    row, found = ROWS[name].tiny(), []
    for who in ("peft", "afina"):
        model = contenders.adapted(who, row, "cpu", True)[0]
        found.append(measure.first_step(model, measure.batch(who, row, "cpu", True)))
        assert sum(p.requires_grad for p in model.parameters()) == 2 * 2 * 7 * row.batch
    assert found[0] == pytest.approx(found[1], rel=1e-2)
    assert found[0]["gradient_norm"] > 0


def test_of_rows_with_adapters_those_without_a_gradient_are_measured_and_say_so(monkeypatch):
    row = ROWS["1b-adapters"].tiny()
    own = contenders.adapted

    def adapted(*args):
        model, said = own(*args)
        forward = model.forward

        def only_without_gradients(**inputs):
            if torch.is_grad_enabled():
                raise RuntimeError("no gradient of this")
            return forward(**inputs)

        model.forward = only_without_gradients
        return model, said

    monkeypatch.setattr(measure, "adapted", adapted)
    found = measure.measured("afina", row, "cpu", True)
    assert found["ms"] > 0
    assert (found["loss"] > 0, found["gradient_norm"]) == (True, None)
    assert found["said"] == ["gradients: none, because of RuntimeError: no gradient of this"]
    with pytest.raises(RuntimeError, match="no gradient of this"):
        measure.measured("afina", ROWS["1b"].tiny(), "cpu", True)


@pytest.mark.parametrize("what", ["floor", "profile", "ways"])
def test_what_fails_beside_the_contenders_leaves_the_table_printed(what, monkeypatch, capsys):
    def fails(*_):
        raise RuntimeError("out of\nmemory")

    from afina.kernels.updates import rows_trial

    monkeypatch.setattr(*(rows_trial, "measured") if what == "ways" else (measure, what), fails)
    command.main(["ways" if what == "ways" else "1b-long", "--device", "cpu", "--tiny"])
    told = {"floor": "**1b-long**: ", "profile": "No operations of afina + speed_up, loss alone in 1b-long: ",
            "ways": "| 1b: q, k, v | 64 | rows, forward | "}[what]  # fmt: skip
    out = capsys.readouterr().out
    assert f"{told}RuntimeError: out of memory" in out
    assert ("| 1b: q, k, v | 64 | forward | " in out) == (what == "ways")


@pytest.mark.whole
def test_ways_of_updates_are_timed_on_the_layers_of_both_sizes(capsys):
    command.main(["ways", "--device", "cpu", "--tiny"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| 1b: ", "| 8b: "))]
    assert len(lines) == 2 * 4 * (2 + 3 * 2 + 1)
    assert all("added" in line and "carried" in line for line in lines if "rows" not in line)
    few = [line for line in lines if "rows, nf4" in line]
    assert len(few) == 8
    assert all("on GPUs only" in line for line in few)
    assert all("together" in line and "one after the other" in line for line in lines
               if "rows" in line and line not in few)  # fmt: skip


def test_a_contender_whose_way_is_named_takes_it_and_no_trials(monkeypatch):
    asked = []

    def speed_up(model, keep_logits, replay):
        asked.append((speed.way([], torch.ones(1)) if speed.way is not own else None, keep_logits, replay))
        return []

    own = speed.way
    monkeypatch.setattr(speed, "speed_up", speed_up)
    for who in (*ROWS["1b-ways"].contenders, FAST):
        contenders._sped_up(who, None, "cpu")
    ways = [None if way is None else (way.forward == way.backward, way.forward) for way, _, _ in asked]
    assert ways[:2] == [(True, ADD), (True, CARRY)]
    assert ways[2][1] in TILES
    assert ways[3:] == [None, None]
    assert [(keep, replay) for _, keep, replay in asked] == [(False, True)] * 4 + [(True, False)]
    assert speed.way is own


def test_what_was_not_the_same_is_marked():
    one = {"ms": 2.0, "loss": 5.0, "gradient_norm": 1.0, "beyond_mib": 3000}
    rows = {"r": {"floor": {"ms": 1.0, "tflops": 600.0}, "aim": 1.8, "contenders": {
        "peft": one, "other": {**one, "loss": 5.2}, "steep": {**one, "gradient_norm": 1.2, "ms": 4.0},
        EQUAL: {**one, "loss": 9.0}, "absent": {"why": "not installed"}}}}  # fmt: skip
    found = {"date": "d", "device": "g", "versions": {"torch": "2"}, "rows": rows, "ways": [], "skipped": [],
             "profile": None}  # fmt: skip
    lines = page(found).splitlines()
    assert lines[2] == "**r**: floor 1 ms (600 TFLOP/s), aim 1.8"
    assert lines[6:] == ["| peft | 2.0 | 2.00 | 3,000 | 5 | 1 |", "| other | 2.0 | 2.00 | 3,000 | 5.2 (!) | 1 |",
                         "| steep | 4.0 | 4.00 | 3,000 | 5 | 1.2 (!) |", f"| {EQUAL} | 2.0 | 2.00 | 3,000 | 9 | 1 |",
                         "| absent | not installed | | | | |"]  # fmt: skip


def test_who_was_not_what_its_name_says_is_told_below_the_row():
    one = {"ms": 2.0, "loss": 5.0, "gradient_norm": 1.0, "beyond_mib": None}
    off = "replayed steps: off, because it takes CUDA graphs"
    rows = {"r": {"floor": {"ms": 1.0, "tflops": 600.0}, "aim": 0, "contenders": {
        FAST: {**one, "said": [off]}, REPLAYED: {**one, "said": ["norms: on", off]}}}}  # fmt: skip
    found = {"date": "d", "device": "g", "versions": {}, "rows": rows, "ways": [], "skipped": [], "profile": None}
    assert page(found).splitlines()[-2:] == ["", f"- {REPLAYED}: {off}"]
