"""One session with several adapters: who answers is switched, and all can answer side by side."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from ..train import tiny
from ..train.child import command

BOTH = ["n4", "n5"]


def make_adapters(model, folder):
    """Three adapters of three methods on the tiny model, strong enough that their answers differ."""
    from pathlib import Path

    from transformers import AutoModelForCausalLM

    import afina

    configs = {
        "a": afina.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        "b": afina.LoHaConfig(r=4, target_modules=["down_proj"], task_type="CAUSAL_LM"),
        "tokens": afina.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    }
    for seed, (name, config) in enumerate(configs.items()):
        adapted = afina.get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
        torch.manual_seed(seed)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += 0.4 * torch.randn_like(parameter)
        adapted.save_pretrained(Path(folder) / name)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, model_folder, child):
    folder = tmp_path_factory.mktemp("adapters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINA_CACHE", str(folder / "cache"))
        child(make_adapters, str(model_folder), str(folder))
    return folder


def session(words, lines):
    return command("chat", *words, "--max-new-tokens", "6", stdin="".join(f"{line}\n" for line in lines))


def talk(child, model, words, lines):
    code, out, err = child(session, [model, *words], lines)
    assert code == 0, err
    answers = {}
    for line in out.splitlines():
        name, _, text = line.partition("] ")
        answers.setdefault(name.removeprefix("["), []).append(text)
    return answers, err


def pairs(adapters, *names):
    return [w for n in names for w in ("--adapter", f"{n}={adapters / n}")]


def mistake(done):
    code, out, err = done
    assert code == 2, out + err
    message = err[err.index("error: ") :]
    assert len(message.splitlines()) <= 4
    return message


def test_all_answer_side_by_side_as_each_answers_alone(model_folder, adapters, child):
    words = pairs(adapters, "a", "b")
    together, err = talk(child, model_folder, words, ["/all", "n4"])
    assert list(together) == ["base", "a", "b"]
    assert len({*map(tuple, together.values())}) == 3
    assert "2 adapters; all answer" in err
    alone, _ = talk(child, model_folder, words, ["/base", "n4", "/use a", "n4", "/use b", "n4"])
    assert alone == together


def test_single_adapter_folder_answers_as_in_a_session(model_folder, adapters, child):
    code, out, err = child(command, "chat", adapters / "a", "--prompt", "n4", "--max-new-tokens", "6")
    assert code == 0, err
    answers, _ = talk(child, model_folder, pairs(adapters, "a", "b"), ["/use a", "n4"])
    assert answers == {"a": [out.rstrip("\n")]}


def test_each_keeps_its_own_conversation(model_folder, adapters, child):
    words = pairs(adapters, "a", "b")
    answers, _ = talk(child, model_folder, words, ["/use a", "n4", "/use b", "n5", "/use a", "n5"])
    straight, _ = talk(child, model_folder, words, ["/use a", "n4", "n5"])
    assert answers["a"] == straight["a"]
    fresh, _ = talk(child, model_folder, words, ["/use a", "n5"])
    assert fresh["a"] != straight["a"][1:]


def test_adapter_that_cannot_share_a_batch_answers_too(model_folder, adapters, child):
    together, _ = talk(child, model_folder, pairs(adapters, "a", "tokens"), ["n4"])
    alone, _ = talk(child, model_folder, pairs(adapters, "a", "tokens"), ["/use tokens", "n4", "/use a", "n4"])
    assert list(together) == ["base", "a", "tokens"]
    assert {n: together[n] for n in alone} == alone


def test_folder_of_adapters_is_taken_by_their_names(model_folder, adapters, child):
    answers, _ = talk(child, model_folder, ["--adapters", adapters], ["/all", "n4"])
    assert list(answers) == ["base", "a", "b", "tokens"]
    mistake(child(session, [model_folder, "--adapters", adapters, *pairs(adapters, "a")], BOTH))


def test_many_adapters_do_not_all_answer_unasked(model_folder, adapters, tmp_path, child):
    for number in range(9):
        shutil.copytree(adapters / "a", tmp_path / f"a{number}")
    answers, err = talk(child, model_folder, ["--adapters", tmp_path], ["n4", "/all", "n4"])
    assert "9 adapters; a0 answers" in err
    assert [len(a) for a in answers.values()] == [2, *[1] * 9]


def test_unknown_words_change_nothing(model_folder, adapters, child):
    lines = ["/use a", "/use bb", "/usr", "/help", "n4"]
    answers, err = talk(child, model_folder, pairs(adapters, "a", "b"), lines)
    assert list(answers) == ["a"]
    assert "no adapter 'bb'; did you mean 'b'?" in err
    assert "unknown: /usr" in err
    assert "adapters: a, b" in err


@pytest.mark.parametrize("word", ["a", "a=", "=x", "a=/nowhere", "base=HERE", "a.b=HERE"])
def test_faulty_adapters_are_refused(model_folder, adapters, child, word):
    word = word.replace("HERE", str(adapters / "a"))
    mistake(child(session, [model_folder, "--adapter", word, *pairs(adapters, "b")], BOTH))


def test_name_given_twice_is_refused(model_folder, adapters, child):
    assert "two adapters" in mistake(child(session, [model_folder, *pairs(adapters, "a", "a")], BOTH))


def test_adapter_of_another_base_is_refused(adapters, tmp_path, child):
    torch.manual_seed(1)
    other = tiny.write_model(tmp_path / "other")
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(other)
    model.model.layers[0].self_attn.q_proj.weight.data += 1
    model.save_pretrained(other)
    mistake(child(session, [other, *pairs(adapters, "a")], BOTH))


def test_classifier_is_refused(model_folder, adapters, tmp_path, child):
    shutil.copytree(adapters / "a", tmp_path / "c")
    path = tmp_path / "c" / "adapter_config.json"
    path.write_text(path.read_text().replace("CAUSAL_LM", "SEQ_CLS"))
    assert "language models" in mistake(child(session, [model_folder, "--adapter", f"c={tmp_path / 'c'}"], BOTH))


def knows_two_tasks(model, folder):
    """Answers and exit codes of `afina chat` with an adapter of two tasks whose rows differ."""
    from transformers import AutoModelForCausalLM

    import afina

    config = afina.PolyConfig(r=4, n_tasks=2, n_skills=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = afina.get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    torch.manual_seed(0)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 2 * torch.randn_like(parameter)
    adapted.save_pretrained(folder)
    words = ["chat", folder, "-p", "n4", "--max-new-tokens", "6"]
    return [command(*words, *more) for more in ([], ["--task", "0"], ["--task", "1"], ["--task", "2"])]


def test_the_number_of_the_task_reaches_the_adapter(model_folder, tmp_path, child):
    without, first, second, beyond = child(knows_two_tasks, str(model_folder), str(tmp_path))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert first[1] != second[1]
    for code, _, said in (without, beyond):
        assert code == 2
        assert "expected: 0 to 1" in said


def test_a_number_that_no_method_reads_is_refused(model_folder, adapters, child):
    for words in ([adapters / "a"], [model_folder, "--adapters", adapters]):
        code, _, said = child(command, "chat", *words, "--task", "0", "-p", "n4")
        assert code == 2
        assert "--task" in said


def train_on_images(folder):
    """A run of a tiny model that tells black from white pictures."""
    from pathlib import Path

    import yaml

    from afina.train.loop.run import run
    from afina.train.recipe.settings import load_recipe
    from afina.train.report.events import Reporter

    from ..train import tiny_images

    here = Path(folder)
    model, rows = tiny_images.write_llava(here / "model"), tiny_images.write_rows(here, 16)
    recipe = {
        "task": "image_text_to_text", "model": {"path": str(model), "dtype": "float32"},
        "data": {"train": str(rows), "max_length": 128}, "output": {"dir": str(here / "run")},
        "method": {"type": "lora", "r": 8, "target_modules": "all-linear"}, "evaluation": {"enabled": False},
        "training": {"learning_rate": 0.01, "batch_size": 4, "max_steps": 20, "save_steps": 50},
    }  # fmt: skip
    (here / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    run(load_recipe(str(here / "recipe.yaml")), Reporter())


@pytest.mark.whole
def test_images_are_shown_with_the_next_message_only(tmp_path, child):
    child(train_on_images, str(tmp_path))
    run = str(tmp_path / "run")
    lines = [f"/image {tmp_path}/0.png", "which?", "/new", f"/image {tmp_path}/1.png", "which?", "/new", "which?",
             "/image nowhere.png", f"/save {tmp_path}/said.jsonl"]  # fmt: skip
    code, out, err = child(session, [run], lines)
    assert code == 0, err
    dark, light, *_ = out.splitlines()
    assert "0.png, 20 x 16, goes with the next message" in err
    assert "no such image" in err
    assert dark != light
    said = [json.loads(line)["messages"] for line in (tmp_path / "said.jsonl").read_text("utf-8").splitlines()]
    assert [part["type"] for part in said[0][0]["content"]] == ["image", "text"]
    assert said[2][0]["content"] == "which?"
    code, one, err = child(session, [run, "--image", str(tmp_path / "1.png"), "-p", "which?"], [])
    assert (code, one.strip()) == (0, light)


def test_an_adapter_of_texts_is_shown_no_image(model_folder, adapters, tmp_path, child):
    code, out, err = child(session, [str(adapters / "a"), "--image", "a.png", "-p", "n4"], [])
    assert (code, out) == (2, "")
    assert "only models trained on images see them" in err
