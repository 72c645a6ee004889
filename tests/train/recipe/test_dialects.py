"""Recipes in the form of each tool's published examples become ours, and everything in them is accounted for."""

from __future__ import annotations

import json

import pytest
import yaml

from afina.errors import RecipeError
from afina.train.recipe.dialects import DIALECTS, import_recipe, written
from afina.train.recipe.settings import load_recipe, recipe_of_text

LLAMA_FACTORY = """
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
quantization_bit: 4
stage: sft
do_train: true
finetuning_type: lora
lora_target: all
dataset: mine,other
template: llama3
cutoff_len: 2048
max_samples: 1000
output_dir: saves/sft
logging_steps: 10
report_to: none
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
resume_from_checkpoint: null
eval_steps: 500
"""
AXOLOTL = """
base_model: NousResearch/Llama-3.2-1B
load_in_4bit: true
datasets:
  - path: teknium/GPT4-LLM-Cleaned
    type: alpaca
  - path: second/set
    type: alpaca
val_set_size: 0.1
adapter: qlora
sequence_len: 2048
sample_packing: true
lora_r: 32
lora_alpha: 16
lora_target_linear: true
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_bnb_8bit
learning_rate: 2e-4
train_on_inputs: false
bf16: auto
flash_attention: true
loss_watchdog_threshold: 5.0
warmup_steps: 10
output_dir: ./outputs/out
"""
TORCHTUNE = """
output_dir: /tmp/tune/out
model:
  _component_: torchtune.models.llama3_2.qlora_llama3_2_1b
  lora_attn_modules: [q_proj, output_proj]
  apply_lora_to_mlp: True
  lora_rank: 64
  lora_alpha: 128
tokenizer: {_component_: torchtune.models.llama3.llama3_tokenizer, path: /m/tokenizer.model, max_seq_len: 512}
checkpointer: {_component_: torchtune.training.FullModelHFCheckpointer, checkpoint_dir: /m, output_dir: "${output_dir}"}
dataset:
  _component_: torchtune.datasets.instruct_dataset
  source: json
  data_files: rows.json
  column_map: {input: q, output: a}
optimizer: {_component_: torch.optim.AdamW, lr: 3e-4}
lr_scheduler:
  _component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup
  num_warmup_steps: 100
epochs: 1
batch_size: 4
max_steps_per_epoch: null
dtype: bf16
profiler: {enabled: False}
"""
SCRIPT = r"""#!/bin/bash
# how it is trained
accelerate launch --config_file "cfg.yaml" train.py \
--model_name_or_path "meta-llama/Llama-2-7b-hf" --dataset_name "owner/set" \
--splits "train,test" --max_seq_len=2048 --num_train_epochs 1 --bf16 True --learning_rate 1e-4 \
--output_dir "llama-lora" --gradient_checkpointing True --use_peft_lora True --lora_r 8 \
--lora_target_modules q_proj v_proj --use_4bit_quantization True --chat_template_format chatml
"""

EXPECTED = {
    "llama-factory": (LLAMA_FACTORY, "r.yaml", {
        "task": "causal_lm", "model.path": "meta-llama/Meta-Llama-3-8B-Instruct", "model.quantize": "nf4",
        "model.dtype": "bfloat16", "method.type": "lora", "method.r": 8, "method.lora_alpha": 16,
        "method.target_modules": "all-linear", "data.train": [{"path": "mine"}, {"path": "other"}],
        "data.max_length": 2048,
        "data.max_train_rows": 1000, "output.dir": "saves/sft", "training.logging_steps": 10, "training.batch_size": 1,
        "training.gradient_accumulation": 8, "training.learning_rate": 1e-4, "training.epochs": 3.0,
        "training.scheduler": "cosine", "training.warmup": 0.1,
    }, {"do_train", "template"}),
    "axolotl": (AXOLOTL, "r.yml", {
        "model.path": "NousResearch/Llama-3.2-1B", "model.quantize": "nf4",
        "data.train": [{"path": "hub:teknium/GPT4-LLM-Cleaned"}, {"path": "hub:second/set"}],
        "data.eval_split": 0.1, "data.max_length": 2048, "method.type": "lora", "method.r": 32, "method.lora_alpha": 16,
        "method.target_modules": "all-linear", "training.packing": True, "training.batch_size": 2,
        "training.epochs": 1.0, "training.optimizer": "adamw_bnb_8bit", "training.learning_rate": 2e-4,
        "training.warmup": 10.0, "output.dir": "./outputs/out",
    }, {"flash_attention", "loss_watchdog_threshold"}),
    "torchtune": (TORCHTUNE, "r.yaml", {
        "model.path": "/m", "model.dtype": "bfloat16", "model.quantize": "nf4", "data.train": "rows.json",
        "data.columns": {"input": "q", "output": "a"}, "data.max_length": 512, "method.type": "lora", "method.r": 64,
        "method.lora_alpha": 128, "method.target_modules": ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "training.learning_rate": 3e-4, "training.scheduler": "cosine", "training.warmup": 100.0,
        "training.epochs": 1.0, "training.batch_size": 4, "output.dir": "/tmp/tune/out",
    }, {"tokenizer._component_", "tokenizer.path", "checkpointer._component_", "optimizer._component_"}),
    "peft-script": (SCRIPT, "run.sh", {
        "model.path": "meta-llama/Llama-2-7b-hf", "model.dtype": "bfloat16", "model.quantize": "nf4",
        "data.train": "hub:owner/set", "data.eval": "hub:owner/set@test", "data.max_length": 2048,
        "method.type": "lora",
        "method.r": 8, "method.target_modules": ["q_proj", "v_proj"], "training.epochs": 1.0,
        "training.learning_rate": 1e-4, "training.gradient_checkpointing": True, "output.dir": "llama-lora",
    }, {"use_peft_lora", "chat_template_format"}),
}  # fmt: skip


def read(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return import_recipe(path)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_recipe_is_known_by_its_keys_and_becomes_ours(tmp_path, name):
    text, file, values, left = EXPECTED[name]
    found = read(tmp_path, file, text)
    assert found.dialect == name
    assert found.values == values
    assert {key.partition(":")[0] for key in found.left} == left
    recipe = recipe_of_text(written(found, file), "r")
    assert recipe.model.path == values["model.path"]
    assert recipe.method.fields == {
        k[7:]: v for k, v in values.items() if k.startswith("method.") and k != "method.type"
    }


@pytest.mark.parametrize("name", EXPECTED)
def test_every_key_is_taken_or_named(tmp_path, name):
    """Another key, whatever it is, is never lost without a word."""
    text, file, _, _ = EXPECTED[name]
    more = text.rstrip() + (" --never_heard_of 3\n" if file.endswith(".sh") else "\nnever_heard_of: 3\n")
    found = read(tmp_path, file, more)
    assert found.left["never_heard_of: 3"] == "not known here"
    assert "never_heard_of: 3" in written(found, file)


@pytest.mark.parametrize("name", DIALECTS)
def test_tables_name_settings_that_there_are(name):
    from afina.train.recipe.sections import Recipe

    for key, rule in DIALECTS[name].TABLE.items():
        if isinstance(rule, str) and not rule.startswith("method."):
            section, _, inner = rule.partition(".")
            assert inner in Recipe.model_fields[section].annotation.model_fields, f"{key}: {rule}"


def test_what_the_recipe_does_not_say_is_to_be_filled_in(tmp_path):
    found = read(tmp_path, "r.yaml", "base_model: some/model\nmicro_batch_size: 1\n")
    assert found.values["data.train"] == "FILL-IN"
    assert "data.train: yours to fill in" in found.look
    assert found.values["method.type"] == "full"  # Axolotl without an adapter


def test_data_sets_are_found_in_llama_factorys_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    entry = {"file_name": "mine.json", "columns": {"prompt": "q", "response": "output"}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    found = read(tmp_path, "r.yaml", "stage: sft\nmodel_name_or_path: m\ndataset: mine\n")
    assert found.values["data.train"] == "data/mine.json"
    assert found.values["data.columns"] == {"instruction": "q"}


AXOLOTL_START = "base_model: m\nmicro_batch_size: 1\n"
LLAMA_FACTORY_START = "model_name_or_path: m\nstage: sft\n"


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        (AXOLOTL_START + "train_on_inputs: true\n", "training.loss_on_prompt", True),
        (AXOLOTL_START + "tokens: [<a>]\n", "model.new_tokens", ["<a>"]),
        (AXOLOTL_START + "lora_model_dir: ./a\n", "model.adapter", "./a"),
        (LLAMA_FACTORY_START + "train_on_prompt: true\n", "training.loss_on_prompt", True),
        (LLAMA_FACTORY_START + "add_tokens: <a>,<b>\n", "model.new_tokens", ["<a>", "<b>"]),
        (LLAMA_FACTORY_START + "adapter_name_or_path: ./a\n", "model.adapter", "./a"),
        (LLAMA_FACTORY_START.replace("sft", "dpo") + "pref_loss: orpo\n", "task", "orpo"),
        (AXOLOTL_START + "datasets: [{path: a/rows}, {path: b/rows}]\n", "data.train",
         [{"path": "hub:a/rows", "name": "hub:a/rows"}, {"path": "hub:b/rows", "name": "hub:b/rows"}]),
    ],
)  # fmt: skip
def test_what_has_a_counterpart_is_taken_over(tmp_path, text, key, value):
    found = read(tmp_path, "r.yaml", text)
    assert found.values[key] == value
    assert not found.left
    recipe_of_text(written(found, "r.yaml"), "r")


def test_data_sets_that_need_different_columns_are_to_be_looked_at(tmp_path):
    sets = "datasets: [{path: a.json, field_output: x}, {path: b.json, field_output: y}]\n"
    found = read(tmp_path, "r.yaml", AXOLOTL_START + sets)
    assert found.values["data.columns"] == {"output": "x"}
    assert any("b.json" in line for line in found.look)


def test_a_data_set_that_is_a_file_is_nothing_to_look_at(tmp_path):
    (tmp_path / "rows.json").write_text("[]")
    found = read(tmp_path, "r.yaml", f"{LLAMA_FACTORY_START}dataset: {tmp_path / 'rows.json'}\n")
    assert not [line for line in found.look if line.startswith("data.train")]


@pytest.mark.parametrize(
    ("name", "text"), [("r.yaml", "- 1\n"), ("r.yaml", "a: [\n"), ("r.txt", "hello"), ("r.yaml", "colour: red\n")]
)  # fmt: skip
def test_what_is_no_such_recipe_is_refused(tmp_path, name, text):
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, name, text)
    assert len(str(caught.value).splitlines()) <= 4


def test_a_value_that_cannot_be_understood_is_told_with_its_key(tmp_path):
    with pytest.raises(RecipeError, match="num_train_epochs"):
        read(tmp_path, "r.yaml", "stage: sft\nnum_train_epochs: many\n")


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("stage: sft", "afina import FILE translates it"),
        ("template: llama3", "the chat template comes with the model's tokenizer"),
        ("lora_target: all", "target_modules: all-linear"),
        ("adapter: qlora", "method: lora, with model.quantize: nf4"),
        ("sample_packing: true\nflash_attention: true", "chosen by itself"),
    ],
)
def test_other_tools_words_in_our_recipes_get_a_hint(tmp_path, line, hint):
    (tmp_path / "r.yaml").write_text(f"model: some/model\ndata: d.jsonl\noutput: o\n{line}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(tmp_path / "r.yaml"))
    assert hint in str(caught.value)
    assert "r.yaml:" in str(caught.value)


def test_written_recipe_is_plain_yaml(tmp_path):
    found = read(tmp_path, "r.yaml", LLAMA_FACTORY)
    values = yaml.safe_load(written(found, "r.yaml"))
    assert values["method"] == {"type": "lora", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
