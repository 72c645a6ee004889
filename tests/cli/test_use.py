"""chat, predict and merge need only the adapter's folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch

from ..train import tiny, tiny_images
from ..train.child import command


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, model_folder, child):
    """A trained language model and a trained classifier; their data and recipes are gone."""
    out = {}
    for task in ("causal_lm", "sequence_classification"):
        folder = tmp_path_factory.mktemp(task)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AFINA_CACHE", str(folder / "cache"))
            recipe = tiny.write_recipe(folder, model_folder, task=task, training__max_steps=60)
            code, _, err = child(command, "train", recipe)
        assert code == 0, err
        for name in ("train.jsonl", "eval.jsonl", "tiny.yaml"):
            (folder / name).unlink()
        out[task] = folder / "out"
    return out


def ok(done):
    code, out, err = done
    assert code == 0, err
    assert "Traceback" not in err
    return out


def mistake(done):
    code, out, err = done
    assert code == 2, out + err
    message = err[err.index("error: ") :]
    assert len(message.splitlines()) <= 4
    assert "Traceback" not in err
    return message


def test_chat_answers_one_prompt(adapters, child):
    out = ok(child(command, "chat", adapters["causal_lm"], "--prompt", "n4", "--max-new-tokens", "6"))
    assert out.strip() in ("even", "odd")


def test_chat_reads_lines_and_shows_the_base_beside(adapters, child):
    def chat(*words):
        return ok(child(chat_with, adapters["causal_lm"], "n4\nn5\n", words))

    lines = chat("--base").splitlines()
    assert [line.split()[0] for line in lines] == ["[base]", "[adapter]"] * 2
    assert lines[0].split()[1:] != lines[1].split()[1:]
    assert [line.split(maxsplit=1)[1] for line in lines[1::2]] == chat().splitlines()


def chat_with(adapter, stdin, words):
    return command("chat", adapter, "--max-new-tokens", "6", *words, stdin=stdin)


def test_chat_of_a_classifier_gives_probabilities(adapters, child):
    words = ok(child(command, "chat", adapters["sequence_classification"], "--prompt", "n4")).split()
    assert sorted(words[::2]) == ["even", "odd"]
    assert float(words[1]) + float(words[3]) == pytest.approx(1, abs=2e-3)


def test_base_of_a_classifier_is_refused(adapters, child):
    mistake(child(command, "chat", adapters["sequence_classification"], "--prompt", "n4", "--base"))


@pytest.mark.parametrize("task", ["causal_lm", "sequence_classification"])
def test_predict_writes_a_prediction_for_every_row(adapters, task, tmp_path, child):
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 7, start=50)
    out = ok(child(command, "predict", adapters[task], rows, "--batch-size", "3"))
    written = [json.loads(line) for line in (tmp_path / "rows.predictions.jsonl").read_text().splitlines()]
    assert [row["text"] for row in written] == [f"n{i}" for i in range(50, 57)]
    right = sum(row["prediction"] == row["label"] for row in written)
    assert f"accuracy {right / 7:.3f}" in out
    if task == "sequence_classification":
        assert all(0.5 <= row["probability"] <= 1 for row in written)


@pytest.mark.parametrize("task", ["causal_lm", "sequence_classification"])
def test_two_processes_predict_what_one_does_and_the_first_one_writes(adapters, task, tmp_path, child, together):
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 9, start=200)
    files = [tmp_path / name for name in ("one.jsonl", "two.jsonl")]
    words = ["predict", adapters[task], rows, "--batch-size", "2", "--out"]
    alone = ok(child(command, *words, files[0]))
    first, second = map(ok, together(command, *words, files[1]))
    assert first.replace("two.jsonl", "one.jsonl") == alone
    assert second == ""
    one, two = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    assert len({row["prediction"] for row in one}) == 2
    assert two == [pytest.approx(row, abs=2e-6) for row in one]


def test_predict_of_several_processes_refuses_all_that_one_refuses(adapters, tmp_path, child, together):
    (tmp_path / "rows.jsonl").write_text('{"text": "n4", "label": "even"}\n{"label": "even"}\n')
    words = ["predict", adapters["causal_lm"], tmp_path / "rows.jsonl"]
    message = mistake(child(command, *words))
    assert [mistake(done) for done in together(command, *words)] == [message] * 2
    assert not (tmp_path / "rows.predictions.jsonl").exists()


@pytest.mark.whole("the launcher has tests of its own, and processes that were started together predict above")
def test_predict_starts_processes_that_share_the_rows(adapters, tmp_path, child):
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 9, start=200)
    out = tmp_path / "p.jsonl"
    words = [sys.executable, "-m", "afina", "predict", adapters["causal_lm"], rows, "--out", out, "--processes", "2"]
    done = subprocess.run([*map(str, words), "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == len(out.read_text().splitlines()) == 9
    assert done.stderr.count("base model:") == 1
    refused = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.count("the file to write exists") == 1


def test_predict_over_earlier_predictions_writes_its_own_and_says_so(adapters, tmp_path, child):
    rows, out = tmp_path / "rows.jsonl", tmp_path / "p.jsonl"
    row = {"text": "n1", "prediction": "of another model", "scores": [1.5, {"a": float("nan")}]}
    rows.write_text(json.dumps(row) + "\n", encoding="utf-8")
    code, _, told = child(command, "predict", adapters["causal_lm"], rows, "--out", out, "--max-new-tokens", "3")
    assert code == 0
    assert json.loads(out.read_text(encoding="utf-8"))["prediction"] != "of another model"
    assert told.count("the file's own 'prediction'\n") == 1  # and of no column that stays as it is


def test_predict_needs_no_labels(adapters, tmp_path, child):
    (tmp_path / "rows.csv").write_text("text\nn1\nn2\n")
    out = ok(child(command, "predict", adapters["causal_lm"], tmp_path / "rows.csv", "--out", tmp_path / "p.jsonl"))
    assert "accuracy" not in out
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 2


def test_predict_does_not_depend_on_the_batch(adapters, tmp_path, child):
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 9, start=5)
    files = []
    for size in (1, 4):
        files.append(tmp_path / f"p{size}.jsonl")
        ok(child(command, "predict", adapters["causal_lm"], rows, "--out", files[-1], "--batch-size", size))
    assert files[0].read_text() == files[1].read_text()


def test_predict_writes_no_file_where_a_folder_is_and_misses_one_that_is_not_there(tmp_path):
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 2)
    assert "a folder is here" in mistake(command("predict", tmp_path, rows, "--out", tmp_path, "--overwrite"))
    assert "no such file or folder" in mistake(command("predict", tmp_path, tmp_path / "nope"))


def test_predict_keeps_an_existing_file(adapters, tmp_path, child):
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 2)
    (tmp_path / "rows.predictions.jsonl").write_text("mine")
    mistake(child(command, "predict", adapters["causal_lm"], rows))
    assert (tmp_path / "rows.predictions.jsonl").read_text() == "mine"
    ok(child(command, "predict", adapters["causal_lm"], rows, "--overwrite"))
    assert (tmp_path / "rows.predictions.jsonl").read_text() != "mine"


def test_predict_tells_faulty_rows(adapters, tmp_path, child):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    message = mistake(child(command, "predict", adapters["causal_lm"], tmp_path / "rows.jsonl"))
    assert "rows.jsonl:2" in message
    assert not (tmp_path / "rows.predictions.jsonl").exists()


def logits_of_adapter(folder):
    from pathlib import Path

    from afina.train.report.events import Reporter
    from afina.train.use.trained import load_trained

    with torch.no_grad():
        return load_trained(Path(folder), Reporter()).model(input_ids=torch.arange(3, 20)[None]).logits


@pytest.mark.parametrize("task", ["causal_lm", "sequence_classification"])
def test_merged_model_needs_no_afina_and_agrees(adapters, task, tmp_path, child):
    import transformers

    out = ok(child(command, "merge", adapters[task], tmp_path / "merged"))
    assert "same first choice 100.0%" in out
    auto = {"causal_lm": "AutoModelForCausalLM", "sequence_classification": "AutoModelForSequenceClassification"}[task]
    merged = getattr(transformers, auto).from_pretrained(tmp_path / "merged")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    expected = child(logits_of_adapter, str(adapters[task]))
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=torch.arange(3, 20)[None]).logits, expected, rtol=1e-5, atol=1e-4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "merged"] or [
        p.name for p in tmp_path.iterdir()
    ] == ["merged"]


def test_merge_keeps_what_is_in_the_way(adapters, tmp_path, child):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "precious.txt").write_text("x")
    for words in ([], ["--overwrite"]):
        mistake(child(command, "merge", adapters["causal_lm"], tmp_path / "merged", *words))
    assert [p.name for p in (tmp_path / "merged").iterdir()] == ["precious.txt"]


def bytes_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_a_command_reads_is_never_overwritten(adapters, model_folder, tmp_path, child):
    rows, adapter = tiny.write_rows(tmp_path / "rows.jsonl", 2), tmp_path / "adapter"
    shutil.copytree(adapters["causal_lm"], adapter)
    before, base = bytes_of(adapter), bytes_of(model_folder)
    for words in (
        ("merge", adapter, model_folder), ("merge", adapter, adapter),
        ("predict", adapter, rows, "--out", rows), ("predict", adapter, rows, "--out", adapter / "adapter_config.json"),
    ):  # fmt: skip
        assert "would overwrite" in mistake(child(command, *words, "--overwrite"))
    assert (bytes_of(adapter), bytes_of(model_folder), len(rows.read_text().splitlines())) == (before, base, 2)


def merge_with_a_fault(adapter, out):
    """Merge, with one weight of what is written falsified."""
    from pathlib import Path

    from afina.export import merged

    plain = merged.reloaded

    def falsified(folder, model):
        again = plain(folder, model)
        next(again.parameters()).data[5:50] += 0.5
        return again

    merged.reloaded = falsified
    try:
        return command("merge", adapter, Path(out))
    finally:
        merged.reloaded = plain


def test_merged_model_that_differs_is_not_reported_as_made(adapters, tmp_path, child):
    message = mistake(child(merge_with_a_fault, adapters["causal_lm"], str(tmp_path / "merged")))
    assert "differs from the adapter" in message
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("verb", ["chat", "predict", "merge"])
def test_what_is_no_adapter_is_refused(verb, tmp_path, child):
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 2)
    words = {"chat": ["--prompt", "x"], "predict": [rows], "merge": [tmp_path / "m"]}[verb]
    assert "not an adapter folder" in mistake(child(command, verb, tmp_path, *words))


def test_truncated_adapter_is_refused(adapters, tmp_path, child):
    shutil.copytree(adapters["causal_lm"], tmp_path / "a")
    weights = tmp_path / "a" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "adapter_model.safetensors" in mistake(child(command, "chat", tmp_path / "a", "--prompt", "x"))


def test_adapter_without_a_recipe_is_used_by_its_config(adapters, tmp_path, child):
    shutil.copytree(adapters["causal_lm"], tmp_path / "a")
    (tmp_path / "a" / "recipe.yaml").unlink()
    assert ok(child(command, "chat", tmp_path / "a", "--prompt", "n4", "--max-new-tokens", "4")).strip()


def test_checkpoint_is_used_with_the_recipe_of_its_run(adapters, tmp_path, child):
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 4, start=50)
    found = []
    for folder in (adapters["causal_lm"], adapters["causal_lm"] / "checkpoint-60"):
        ok(child(command, "predict", folder, rows, "--out", tmp_path / "out.jsonl", "--overwrite"))
        found.append((tmp_path / "out.jsonl").read_text())
    assert '"prediction"' in found[0]
    assert found[0] == found[1]


def test_checkpoint_of_a_model_trained_as_a_whole_is_used(model_folder, tmp_path, child):
    recipe = tiny.write_recipe(tmp_path, model_folder, method={"type": "full"}, evaluation__enabled=False)
    ok(child(command, "train", recipe))
    found = [ok(child(command, "chat", folder, "--prompt", "n4", "--max-new-tokens", "4"))
             for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-6")]  # fmt: skip
    assert found[0].strip()
    assert found[0] == found[1]


def test_run_that_lost_its_adapters_config_is_no_adapter(adapters, tmp_path, child):
    shutil.copytree(adapters["causal_lm"], tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").unlink()
    assert "no adapter_config.json" in mistake(child(command, "chat", tmp_path / "a", "--prompt", "n4"))
    (tmp_path / "a" / "recipe.yaml").unlink()
    assert "no adapter_config.json" in mistake(child(command, "chat", tmp_path / "a", "--prompt", "n4"))


def test_version_names_what_afina_stands_on(child):
    out = ok(child(command, "version"))
    assert out.startswith("afina ")
    assert "torch 2" in out


WRITES_NOTHING = ("token_classification", "reward")
MERGED = (
    "seq2seq",
    "token_classification",
    "reward",
    "preference",
    "extractive_qa",
    "embeddings",
    "pretraining",
    "image_text_to_text",
)


@pytest.fixture(scope="module")
def of_tasks(tmp_path_factory, model_folder, child):
    """Adapters of tasks whose models do not chat."""
    models = {"llama": model_folder, "t5": tiny.write_t5(tmp_path_factory.mktemp("t5")),
              "encoder": tiny.write_encoder(tmp_path_factory.mktemp("encoder")),
              "idefics3": tiny_images.write_idefics3(tmp_path_factory.mktemp("idefics3"))}  # fmt: skip
    out = {}
    for task in MERGED:
        folder = tmp_path_factory.mktemp(task)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AFINA_CACHE", str(folder / "cache"))
            file = tiny.write_task(folder, task, models, training__max_steps=2)
            code, _, err = child(command, "train", file)
        assert code == 0, err
        out[task] = folder / "out"
    return out


@pytest.mark.parametrize(
    ("task", "says"),
    [("seq2seq", ""), ("token_classification", "n4/"), ("reward", "."), ("preference", ""), ("image_text_to_text", "")],
)
def test_every_task_answers_and_predicts_on_the_command_line(task, says, of_tasks, tmp_path, child):
    short = ["--max-new-tokens", "3"]
    writes = task not in WRITES_NOTHING
    out = ok(child(command, "chat", of_tasks[task], "--prompt", "n4", *(short if writes else [])))
    assert says in out
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in tiny.task_rows(task, 3)))
    done = child(command, "predict", of_tasks[task], file, *(short if writes else []))
    if not writes:
        for words in (["chat", of_tasks[task], "--prompt", "n4"], ["predict", of_tasks[task], file, "--overwrite"]):
            assert f"got: {task}" in mistake(child(command, *words, *short))
    assert ("held-out" not in ok(done)) or task == "reward"
    columns = {"reward": "score_chosen"}.get(task, "prediction")
    lines = (tmp_path / "rows.predictions.jsonl").read_text().splitlines()
    assert [columns in json.loads(line) for line in lines] == [True] * 3


@pytest.mark.parametrize("task", MERGED)
def test_every_task_merges_and_the_merged_model_is_compared(task, of_tasks, tmp_path, child):
    ok(child(command, "merge", of_tasks[task], tmp_path / "merged"))
    assert (tmp_path / "merged" / "model.safetensors").is_file()


@pytest.fixture(scope="module")
def half(tmp_path_factory, child):
    """An adapter that was trained in float32 on a base that is stored in bfloat16."""
    folder = tmp_path_factory.mktemp("half")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINA_CACHE", str(folder / "cache"))
        child(tiny.write_model, folder / "model")
        child(store_as, str(folder / "model"), "bfloat16")
        code, _, err = child(command, "train", tiny.write_recipe(folder, folder / "model"))
    assert code == 0, err
    return folder / "out"


def store_as(model, dtype):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).save_pretrained(model)


@pytest.mark.parametrize(("words", "dtype"), [([], "bfloat16"), (["--dtype", "float32"], "float32")])
def test_merged_model_has_the_dtype_of_the_base_unless_told_otherwise(half, tmp_path, child, words, dtype):
    from safetensors.torch import load_file

    made = json.loads(ok(child(command, "merge", half, tmp_path / "m", "--json", *words)))
    assert (made["dtype"], made["check"]["probes"]) == (dtype, 6)
    assert f'"dtype": "{dtype}"' in (tmp_path / "m" / "config.json").read_text()
    weights = load_file(tmp_path / "m" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {getattr(torch, dtype)}


def test_unknown_dtype_is_refused(half, tmp_path, child):
    assert "bfloat16" in mistake(child(command, "merge", half, tmp_path / "m", "--dtype", "int8"))


def test_predict_tells_programs_its_scores(adapters, tmp_path, child):
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 4)
    told = json.loads(ok(child(command, "predict", adapters["causal_lm"], rows, "--json")))
    assert (told["rows"], told["scores"]["rows"]) == (4, 4)
    assert told["file"] == str(tmp_path / "rows.predictions.jsonl")


def test_version_for_programs(child):
    assert json.loads(ok(child(command, "version", "--json")))["torch"].startswith("2")


def chat_lines(adapter, lines, *words):
    limit = [] if "classification" in str(adapter) else ["--max-new-tokens", "6"]
    return command("chat", adapter, *limit, *words, stdin="".join(f"{line}\n" for line in lines))


def test_commands_work_with_a_single_adapter_too(adapters, tmp_path, child):
    lines = [
        "n4",
        "/base",
        "n4",
        "/all",
        "n5",
        "/history",
        f"/save {tmp_path / 't.jsonl'}",
        "/help",
        "/no",
        "/quit",
        "n6",
    ]
    code, out, err = child(chat_lines, adapters["causal_lm"], lines)
    assert code == 0, err
    said = out.splitlines()
    assert [line.split("]")[0] for line in said[1:]] == ["[base", "[base", "[adapter"]
    assert said[0] in ("even", "odd")
    for words in ("base answers", "all answer", "/set KEY=VALUE", "unknown: /no", "2 conversations in", "[user] n5"):
        assert words in err, words
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    adapter = next(row["messages"] for row in rows if row["speaker"] == "adapter")
    assert [m["content"] for m in adapter if m["role"] == "user"] == ["n4", "n5"]
    assert adapter[1] == {"role": "assistant", "content": said[0]}


def test_answers_are_drawn_where_a_temperature_is_set(adapters, child):
    def answers(*words):
        code, out, err = child(chat_lines, adapters["causal_lm"], ["n4"] * 5, *words)
        assert code == 0, err
        return out

    hot = answers("--temperature", "30", "--seed", "1")
    assert hot == answers("--temperature", "30", "--seed", "1")
    assert hot != answers("--temperature", "30", "--seed", "2")
    assert answers() == answers("--temperature", "30", "--top-p", "1e-9")
    lines = ["/set temperature=30", "/set top_p=1e-9 max_new_tokens=6", "/set", "/set heat=1", "/set top_p=2", "n4"]
    code, out, err = child(chat_lines, adapters["causal_lm"], lines)
    assert (code, out) == (0, answers().splitlines()[0] + "\n")
    for words in ("max_new_tokens=6 temperature=30 top_p=1e-09", "no setting 'heat'", "top_p: out of range"):
        assert words in err, words


@pytest.mark.parametrize("words", [("--temperature", "-1"), ("--top-p", "0"), ("--max-new-tokens", "0")])
def test_sampling_out_of_range_is_refused(adapters, child, words):
    assert "out of range" in mistake(child(command, "chat", adapters["causal_lm"], "-p", "x", *words))


def test_a_system_message_reaches_the_model(adapters, child):
    def told(*lines, words=()):
        code, out, err = child(chat_lines, adapters["causal_lm"], ["/base", *lines], *words)
        assert code == 0, err
        return out, err

    plain, err = told("/system", "n4")
    assert "no system message" in err
    other, err = told("/system Be brief.", "n4")
    assert "system: Be brief." in err
    assert other != plain
    assert told("n4", words=("--system", "Be brief."))[0] == other


def test_chat_answers_programs_and_keeps_a_transcript(adapters, tmp_path, child):
    words = ["--json", "--base", "--transcript", tmp_path / "t.jsonl"]
    code, out, err = child(chat_lines, adapters["causal_lm"], ["n4", "n5"], *words)
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["message"] for row in rows] == ["n4", "n5"]
    assert all(sorted(row["answers"]) == ["adapter", "base"] for row in rows)
    assert len((tmp_path / "t.jsonl").read_text().splitlines()) == 2
    assert "exists" in mistake(child(chat_lines, adapters["causal_lm"], ["n4"], *words))


def test_a_classifier_obeys_too(adapters, child):
    code, out, err = child(chat_lines, adapters["sequence_classification"], ["/base", "/help", "n4", "/quit", "n5"])
    assert code == 0, err
    assert "there is no base beside it" in err
    assert len(out.splitlines()) == 1


def in_folder(folder, *words):
    """As `command`, with `folder` as the current one."""
    import os

    before = os.getcwd()
    os.chdir(folder)
    try:
        return command(*words)
    finally:
        os.chdir(before)


def asked_in(here, folder, text):
    import os

    before = os.getcwd()
    os.chdir(here)
    try:
        return command("chat", folder, stdin=text)
    finally:
        os.chdir(before)


def test_images_are_predicted_merged_and_asked_about_from_a_folder(tmp_path, child):
    model, pets = tiny_images.write_vit(tmp_path / "vit"), tmp_path / "pets"
    for name, shade in (("dark", 20), ("light", 220)):
        (pets / name).mkdir(parents=True)
        for i in range(4):
            tiny_images.write_image(pets / name / f"{i}.png", (shade + i, shade, shade))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"task: image_classification\nmodel: {{path: {model}, dtype: float32}}\n"
        f"data: {{train: {pets}, eval: {pets}}}\noutput: {{dir: {tmp_path / 'run'}}}\n"
        "training: {learning_rate: 0.01, batch_size: 4, max_steps: 12}\n"
    )
    ok(child(command, "train", recipe))
    here = tmp_path / "here"
    here.mkdir()
    assert "accuracy 1.000" in ok(child(in_folder, here, "predict", tmp_path / "run", pets))
    rows = [json.loads(line) for line in (here / "pets.predictions.jsonl").read_text().splitlines()]
    assert {(row["image"], row["prediction"]) for row in rows} >= {("dark/1.png", "dark"), ("light/3.png", "light")}
    ok(child(in_folder, here, "predict", tmp_path / "run", pets / "light" / "2.png"))
    assert json.loads((here / "2.predictions.jsonl").read_text())["prediction"] == "light"
    assert not list(pets.rglob("*.jsonl"))
    merged = ok(child(command, "merge", tmp_path / "run", tmp_path / "merged"))
    assert "same first choice 100.0%" in merged
    code, out, err = child(asked_in, pets, tmp_path / "run", "dark/0.png\n/image light/0.png\n")
    assert (code, out.split()[0]) == (0, "dark")
    assert "light 0." in err or "light 1." in err
    fits = ok(child(command, "inspect", tmp_path / "run", "--base", model))
    assert "fit       yes" in fits
    assert "8 rows, 8 can be used, form: pictured" in child(command, "data", pets, "--model", model)[1]
