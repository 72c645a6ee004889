"""`afina convert` writes LoRA and says what that loses."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from ..train import tiny
from ..train.child import command


def make_adapters(model, folder):
    from pathlib import Path

    from transformers import AutoModelForCausalLM

    import afina

    for name, config in {
        "loha": afina.LoHaConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
        "tokens": afina.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    }.items():
        adapted = afina.get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
        torch.manual_seed(0)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += 0.3 * torch.randn_like(parameter)
        adapted.save_pretrained(Path(folder) / name)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, model_folder, child):
    folder = tmp_path_factory.mktemp("adapters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINA_CACHE", str(folder / "cache"))
        child(make_adapters, str(model_folder), str(folder))
    return folder


def logits(model, adapter):
    from transformers import AutoModelForCausalLM

    import afina

    adapted = afina.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter)
    with torch.no_grad():
        return adapted(input_ids=torch.arange(3, 20)[None]).logits


def ok(done):
    code, out, err = done
    assert code == 0, err
    return out


def mistake(done):
    code, out, err = done
    assert code == 2, out + err
    message = err[err.index("error: ") :]
    assert len(message.splitlines()) <= 4
    return message


def test_full_rank_answers_as_the_original(model_folder, adapters, tmp_path, child):
    out = ok(child(command, "convert", adapters / "loha", tmp_path / "lora", "--to", "lora", "--rank", "32"))
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    both = [child(logits, str(model_folder), str(f)) for f in (adapters / "loha", tmp_path / "lora")]
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-4)
    assert out.splitlines()[-1] == f"LoRA in {tmp_path / 'lora'}"


def test_error_is_a_line_for_each_layer_and_one_for_all(adapters, tmp_path, child):
    lines = ok(child(command, "convert", adapters / "loha", tmp_path / "lora", "--rank", "2")).splitlines()
    assert lines[0].split() == ["layer", "rank", "kept", "error"]
    rows = [line.split() for line in lines[1:-1]]
    assert len(rows) == 2 * 2 + 1
    assert rows[-1][0] == "all"
    assert all(rank == "2" and 0 < float(error) < 1 for _, rank, _, error in rows)
    for _, _, kept, error in rows:
        assert float(kept.rstrip("%")) / 100 == pytest.approx(1 - float(error) ** 2, abs=0.01)


def test_share_chooses_ranks(adapters, tmp_path, child):
    lines = ok(child(command, "convert", adapters / "loha", tmp_path / "lora", "--rank", "0.9")).splitlines()
    assert all(float(line.split()[2].rstrip("%")) >= 90 for line in lines[1:-1])


def test_base_can_be_named(model_folder, adapters, tmp_path, child):
    shutil.copytree(adapters / "loha", tmp_path / "moved")
    path = tmp_path / "moved" / "adapter_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "base_model_name_or_path": "/gone"}))
    mistake(child(command, "convert", tmp_path / "moved", tmp_path / "lora"))
    ok(child(command, "convert", tmp_path / "moved", tmp_path / "lora", "--base", model_folder))
    written = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(model_folder)


@pytest.mark.parametrize("words", [
    ["--rank", "0"], ["--rank", "-3"], ["--rank", "1.5"], ["--rank", "0.0"], ["--rank", "many"], ["--rank", "nan"],
    ["--to", "ia3"], ["--base", "/nowhere"],
], ids=" ".join)  # fmt: skip
def test_mistakes_write_nothing(adapters, tmp_path, child, words):
    mistake(child(command, "convert", adapters / "loha", tmp_path / "lora", *words))
    assert not (tmp_path / "lora").exists()


def test_virtual_tokens_are_refused(adapters, tmp_path, child):
    assert "virtual tokens" in mistake(child(command, "convert", adapters / "tokens", tmp_path / "lora"))


def test_what_is_in_the_way_is_kept(adapters, tmp_path, child):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "precious.txt").write_text("x")
    for words in ([], ["--overwrite"]):
        mistake(child(command, "convert", adapters / "loha", tmp_path / "lora", *words))
    assert [p.name for p in (tmp_path / "lora").iterdir()] == ["precious.txt"]


def test_former_adapter_is_replaced_when_asked_for(adapters, tmp_path, child):
    words = ("convert", adapters / "loha", tmp_path / "lora", "--rank")
    ok(child(command, *words, "1"))
    mistake(child(command, *words, "2"))
    ok(child(command, *words, "2", "--overwrite"))
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["r"] == 2


def test_an_adapter_is_not_overwritten_by_what_is_made_of_it(adapters, model_folder, child):
    before = {p.name: p.read_bytes() for p in (adapters / "loha").iterdir()}
    for out in (adapters / "loha", model_folder):
        code, said, err = child(command, "convert", adapters / "loha", out, "--overwrite")
        assert code == 2, said + err
        assert "would overwrite" in err or "only an adapter is replaced" in err
    assert {p.name: p.read_bytes() for p in (adapters / "loha").iterdir()} == before


def test_adapter_that_stands_on_another_is_refused(tmp_path, model_folder, child):
    one = tiny.write_recipe(tmp_path, model_folder, training__max_steps=1, evaluation__enabled=False)
    above = ("model.adapter_as=base", f"model.adapter={tmp_path / 'out'}", f"output.dir={tmp_path / 'above'}")
    for more in ((), above):
        code, _, err = child(command, "train", one, *more)
        assert code == 0, err
    code, _, err = child(command, "convert", tmp_path / "above", tmp_path / "lora")
    assert code == 2
    assert "stands on another one" in err
    assert not (tmp_path / "lora").exists()


def test_the_tokenizer_that_it_was_trained_with_goes_along(adapters, model_folder, tmp_path, child):
    shutil.copytree(adapters / "loha", tmp_path / "run")
    for file in model_folder.glob("*token*"):
        shutil.copy(file, tmp_path / "run")
    path = tmp_path / "run" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": "{{ messages[0].content }}!"}))
    ok(child(command, "convert", tmp_path / "run", tmp_path / "lora"))
    ok(child(command, "convert", adapters / "loha", tmp_path / "without"))
    written = [p.read_text() for p in (tmp_path / "lora").glob("*") if p.suffix in (".json", ".jinja")]
    assert any("{{ messages[0].content }}!" in text for text in written)
    assert not (tmp_path / "without" / "tokenizer_config.json").exists()


def with_new_tokens(recipe_file):
    from afina.train.loop.run import run
    from afina.train.recipe.settings import load_recipe
    from afina.train.report.events import Reporter

    return run(load_recipe(recipe_file), Reporter()).folder


def answered(folder):
    """The converted adapter as anyone would load it: its vocabulary, and logits of its new tokens."""
    from transformers import AutoTokenizer

    import afina

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = afina.AutoPeftModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("<even> n1 <odd>", add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return len(tokenizer), tokenizer.convert_ids_to_tokens(ids[0, [0, -1]].tolist()), model(input_ids=ids).logits


def test_tokenizer_with_new_tokens_goes_along(model_folder, tmp_path, child):
    own = {"model__new_tokens": ["<even>", "<odd>"], "evaluation__enabled": False, "training__max_steps": 2}
    file = tiny.write_recipe(tmp_path, model_folder, **own)
    adapter = child(with_new_tokens, str(file))
    ok(child(command, "convert", adapter, tmp_path / "lora", "--rank", "8"))
    (size, tokens, before), (again, same, after) = (child(answered, str(f)) for f in (adapter, tmp_path / "lora"))
    assert (again, same) == (size, tokens) == (261, ["<even>", "<odd>"])
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
