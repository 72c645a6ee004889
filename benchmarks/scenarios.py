"""What `benchmarks.ecosystem` runs: each function is a user's script that knows only the name `peft`.

`python -m benchmarks.scenarios peft|afina` reads names of scenarios, one a line, and answers each with a line: RESULT
and one JSON object of numbers, or FAILED. Every scenario has a process of its own, forked from one that has imported
the libraries and nothing more.
"""

from __future__ import annotations

import copy
import functools
import importlib.abc
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

import torch

from .loading import diffusers_pipeline, loop, sentence
from .models import auto_and_pipelines, seq2seq
from .toys import (
    adapter_size,
    causal,
    lora,
    losses,
    preferences,
    same_start,
    settings,
    start_callback,
    texts,
    tokenizer,
)


def trainer_run(folder):
    """Trainer: train, save, resume from a checkpoint, best model."""
    from datasets import Dataset
    from peft import PeftModel, get_peft_model
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    words = tokenizer()
    data = Dataset.from_dict({"text": texts() * 2}).map(lambda r: words(r["text"]), remove_columns="text")

    def make(where, **changes):
        model = same_start(get_peft_model(causal(), lora()))
        args = settings(
            TrainingArguments,
            where,
            save_strategy="steps",
            save_steps=3,
            eval_strategy="steps",
            eval_steps=3,
            load_best_model_at_end=True,
            **changes,
        )
        return Trainer(model, args, DataCollatorForLanguageModeling(words, mlm=False), data, data.select(range(4)))

    whole = make(folder / "a")
    whole.train()
    again = make(folder / "b")
    again.train(resume_from_checkpoint=str(folder / "a" / "checkpoint-3"))
    whole.save_model(str(folder / "out"))
    loaded = PeftModel.from_pretrained(causal(), str(folder / "out"))
    ids = torch.arange(2, 10)[None]
    found = {
        **losses(whole),
        **losses(whole, "eval_loss"),
        "resumed": again.state.log_history[-3]["loss"],
        "best": whole.state.best_metric,
        "logits": float(loaded(ids).logits.abs().sum()),
    }
    base = [p.name for p in (folder / "out").iterdir() if p.name in ("model.safetensors", "pytorch_model.bin")]
    assert not base, "the whole base model was saved"
    return {**found, **adapter_size(folder / "out")}


def transformers_mixin(folder):
    """transformers' own add_adapter, set_adapter, save, load_adapter, from_pretrained(adapter folder), delete."""
    from transformers import AutoModelForCausalLM

    base = causal()
    base.save_pretrained(folder / "base")
    ids = torch.arange(2, 10)[None]
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    out = {"before": float(model(ids).logits.abs().sum())}
    model.add_adapter(lora(), adapter_name="one")
    same_start(model)
    out["one"] = float(model(ids).logits.abs().sum())
    model.disable_adapters()
    out["disabled"] = float(model(ids).logits.abs().sum())
    model.enable_adapters()
    model.save_pretrained(folder / "one")
    out |= adapter_size(folder / "one")
    fresh = AutoModelForCausalLM.from_pretrained(folder / "base")
    fresh.load_adapter(str(folder / "one"), adapter_name="again")
    out["loaded"] = float(fresh(ids).logits.abs().sum())
    fresh.add_adapter(lora(r=2), adapter_name="two")
    out["active"] = len(fresh.active_adapters())
    fresh.set_adapter("again")
    out["switched"] = float(fresh(ids).logits.abs().sum())
    fresh.delete_adapter("two")
    through = AutoModelForCausalLM.from_pretrained(folder / "one")
    out["from_folder"] = float(through(ids).logits.abs().sum())
    assert out["loaded"] == out["one"] == out["switched"] == out["from_folder"] != out["disabled"] == out["before"]
    out["state"] = sum(float(t.abs().sum()) for t in fresh.get_adapter_state_dict("again").values())
    return out


def sft(folder):
    """SFTTrainer with `peft_config=`."""
    from datasets import Dataset
    from peft import PeftModel
    from trl import SFTConfig, SFTTrainer

    rows = {
        "prompt": [" ".join(t.split()[:3]) for t in texts()],
        "completion": [" " + " ".join(t.split()[3:]) for t in texts()],
    }
    trainer = SFTTrainer(
        causal(),
        settings(SFTConfig, folder, max_length=32),
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer(),
        peft_config=lora(),
        callbacks=[start_callback()],
    )
    trainer.train()
    trainer.save_model(str(folder / "out"))
    loaded = PeftModel.from_pretrained(causal(), str(folder / "out"))
    return {
        **losses(trainer),
        **adapter_size(folder / "out"),
        "logits": float(loaded(torch.arange(2, 10)[None]).logits.abs().sum()),
    }


def dpo(folder, **adapter):
    """DPOTrainer: the reference is the model with its adapter off, and with the base's head where one is trained."""
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(
        causal(),
        args=settings(DPOConfig, folder, max_length=32),
        train_dataset=preferences(),
        processing_class=tokenizer(),
        peft_config=lora(**adapter),
        callbacks=[start_callback()],
    )
    trainer.train()
    return {**losses(trainer), **losses(trainer, "rewards/margins")}


def dpo_from_adapter(folder):
    """DPOTrainer on a trained adapter: the reference is a frozen copy of it under the name "ref"."""
    from peft import get_peft_model
    from trl import DPOConfig, DPOTrainer

    model = same_start(get_peft_model(causal(), lora()))
    trainer = DPOTrainer(
        model,
        args=settings(DPOConfig, folder, max_length=32),
        train_dataset=preferences(),
        processing_class=tokenizer(),
    )
    assert "ref" in model.peft_config
    trainer.train()
    return {**losses(trainer), **losses(trainer, "rewards/margins")}


def reward(folder):
    """RewardTrainer: a sequence classifier with its score head trained along."""
    from trl import RewardConfig, RewardTrainer

    trainer = RewardTrainer(
        causal(labels=1),
        settings(RewardConfig, folder, max_length=32),
        train_dataset=preferences(),
        processing_class=tokenizer(),
        peft_config=lora(task_type="SEQ_CLS", modules_to_save=["score"]),
        callbacks=[start_callback()],
    )
    trainer.train()
    trainer.save_model(str(folder / "out"))
    return {**losses(trainer), **adapter_size(folder / "out")}


def grpo(folder, **adapter):
    """GRPOTrainer on a toy reward, the share of the word "happy", held to the model with its adapter off."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def happy(completions, **kwargs):
        return [float(c.split().count("happy")) - 0.1 * len(c.split()) for c in completions]

    args = settings(
        GRPOConfig,
        folder,
        max_steps=3,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        beta=0.1,
        temperature=1.0,
    )
    trainer = GRPOTrainer(
        causal(),
        happy,
        args,
        train_dataset=Dataset.from_dict({"prompt": ["the cat", "it is"] * 2}),
        processing_class=tokenizer(),
        peft_config=lora(**adapter),
        callbacks=[start_callback()],
    )
    trainer.train()
    return {**losses(trainer), **losses(trainer, "kl"), **losses(trainer, "reward")}


SCENARIOS = {
    "transformers.Trainer": trainer_run,
    "transformers.Seq2SeqTrainer": seq2seq,
    "transformers mixin": transformers_mixin,
    "Auto classes and pipelines": auto_and_pipelines,
    "trl.SFTTrainer": sft,
    "trl.DPOTrainer": dpo,
    "trl.DPOTrainer on an adapter": dpo_from_adapter,
    "trl.RewardTrainer": reward,
    "trl.DPOTrainer with a trained head": functools.partial(dpo, modules_to_save=["lm_head"]),
    "trl.GRPOTrainer": grpo,
    "trl.GRPOTrainer with a trained head": functools.partial(grpo, modules_to_save=["lm_head"]),
    "accelerate": loop,
    "diffusers": diffusers_pipeline,
    "sentence-transformers": sentence,
}


class NoPeft(importlib.abc.MetaPathFinder):
    """The real package cannot be imported in this process, as if it were not installed."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "peft" or fullname.startswith("peft."):
            raise ModuleNotFoundError(f"No module named {fullname!r} (kept out)", name=fullname)
        return None


IMPORTED = ("datasets", "diffusers", "sentence_transformers", "transformers.trainer", "trl.trainer.sft_trainer",
            "trl.trainer.dpo_trainer", "trl.trainer.reward_trainer", "trl.trainer.grpo_trainer")  # fmt: skip


def answer(name: str, library: str) -> None:
    """Run one scenario and print its numbers."""
    with tempfile.TemporaryDirectory() as folder:
        found = SCENARIOS[name](Path(folder))
    import peft

    assert (not hasattr(peft, "__file__")) == (library == "afina")
    print("RESULT " + json.dumps(copy.copy(found)), flush=True)


def main() -> None:
    library = sys.argv[1]
    torch.set_num_threads(1)
    if library == "afina":
        import afina.compat

        sys.meta_path.insert(0, NoPeft())
        afina.compat.stand_in()
    for module in IMPORTED:
        importlib.import_module(module)
    for line in sys.stdin:
        if not (child := os.fork()):
            try:
                answer(line.strip(), library)
            except BaseException:
                traceback.print_exc()
                print("FAILED", flush=True)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            print("FAILED", flush=True)


if __name__ == "__main__":
    main()
