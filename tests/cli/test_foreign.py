from __future__ import annotations

import json

from ..train.child import command
from ..train.recipe.test_dialects import AXOLOTL


def test_import_prints_or_writes_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ax.yaml").write_text(AXOLOTL)
    code, out, err = command("import", "ax.yaml")
    assert code == 0, err
    assert out.startswith("# From ax.yaml (axolotl)")
    assert "loss_watchdog_threshold: 5.0" in out
    code, out, err = command("import", "ax.yaml", "--out", "mine.yaml")
    assert code == 0, err
    assert "afina train mine.yaml --dry-run" in out
    code, out, err = command("import", "ax.yaml", "--out", "mine.yaml")
    assert code == 2
    assert "exists" in err
    code, out, _ = command("import", "ax.yaml", "--json")
    assert json.loads(out)["recipe"]["model.quantize"] == "nf4"


def test_paths_of_a_written_recipe_count_from_it(tmp_path, monkeypatch):
    from afina.train.recipe.settings import load_recipe

    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.json").write_text("[]")
    (tmp_path / "cfg").mkdir()
    (tmp_path / "ax.yaml").write_text("base_model: some/model\nadapter: lora\nmicro_batch_size: 1\n"
                                      "datasets: [{path: rows.json, type: alpaca}]\noutput_dir: out\n")  # fmt: skip
    code, _, err = command("import", "ax.yaml", "--out", "cfg/mine.yaml")
    assert code == 0, err
    recipe = load_recipe("cfg/mine.yaml")
    assert (recipe.data.train, recipe.output.dir) == ("cfg/../rows.json", "cfg/../out")


def test_paths_of_several_data_sets_and_of_an_adapter_count_from_it(tmp_path, monkeypatch):
    from afina.train.recipe.settings import load_recipe

    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("[]")
    (tmp_path / "cfg").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "ax.yaml").write_text("base_model: some/model\nadapter: lora\nmicro_batch_size: 1\n"
                                      "lora_model_dir: run\ndatasets: [{path: a.json}, {path: b.json}]\n")  # fmt: skip
    code, _, err = command("import", "ax.yaml", "--out", "cfg/mine.yaml")
    assert code == 0, err
    recipe = load_recipe("cfg/mine.yaml")
    assert [one.path for one in recipe.data.train] == ["cfg/../a.json", "cfg/../b.json"]
    assert recipe.model.adapter == "cfg/../run"


def test_unknown_tool_is_refused(tmp_path):
    (tmp_path / "r.yaml").write_text("a: 1\n")
    code, _, err = command("import", tmp_path / "r.yaml", "--from", "unsloth")
    assert code == 2
    assert "llama-factory" in err
