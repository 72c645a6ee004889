"""Scenarios of encoder-decoders, Auto classes and pipelines."""

from __future__ import annotations

import torch

from .toys import (
    WORDS,
    adapter_size,
    causal,
    lora,
    losses,
    same_start,
    settings,
    texts,
    tokenizer,
)


def small_t5():
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(WORDS),
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            pad_token_id=0,
            eos_token_id=3,
            decoder_start_token_id=0,
            dropout_rate=0.0,
        )
    )


def seq2seq(folder):
    """Seq2SeqTrainer: trained, evaluated by generating, saved and loaded."""
    from datasets import Dataset
    from peft import PeftModel, get_peft_model
    from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

    words = tokenizer()
    rows = [{"input_ids": words(t).input_ids, "labels": words(t).input_ids[:4]} for t in texts()]
    model = same_start(get_peft_model(small_t5(), lora(target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")))
    args = settings(Seq2SeqTrainingArguments, folder, predict_with_generate=True, generation_max_length=6)
    data = Dataset.from_list(rows)
    trainer = Seq2SeqTrainer(model, args, DataCollatorForSeq2Seq(words, model), data, data)
    trainer.train()
    found = trainer.evaluate()
    trainer.save_model(str(folder / "out"))
    loaded = PeftModel.from_pretrained(small_t5(), str(folder / "out"))
    ids = torch.arange(2, 10)[None]
    return {
        **losses(trainer),
        **adapter_size(folder / "out"),
        "eval_loss": found["eval_loss"],
        "predicted": float(trainer.predict(data).predictions.sum()),
        "logits": float(loaded(input_ids=ids, labels=ids).logits.abs().sum()),
    }


def auto_and_pipelines(folder):
    """AutoPeftModel classes on a saved adapter, and transformers' pipelines with what they give."""
    from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, get_peft_model
    from transformers import pipeline

    out = {}
    words = tokenizer()
    for kind, base, more in (
        ("lm", causal(), {}),
        ("classifier", causal(labels=3), {"task_type": "SEQ_CLS"}),
    ):
        base.save_pretrained(folder / kind)
        base.config._name_or_path = base.name_or_path = str(folder / kind)
        model = same_start(get_peft_model(base, lora(**more)))
        model.save_pretrained(folder / f"{kind}-adapter")
        out |= {f"{kind} {k}": v for k, v in adapter_size(folder / f"{kind}-adapter").items()}
    ids = torch.arange(2, 10)[None]
    generator = AutoPeftModelForCausalLM.from_pretrained(folder / "lm-adapter")
    out["auto lm"] = float(generator(ids).logits.abs().sum())
    pipe = pipeline("text-generation", model=generator, tokenizer=words, device="cpu")
    written = pipe("the cat", max_new_tokens=5, do_sample=False)[0]["generated_text"]
    out["written"] = float(sum(words(written).input_ids))
    classifier = AutoPeftModelForSequenceClassification.from_pretrained(folder / "classifier-adapter", num_labels=3)
    sorter = pipeline("text-classification", model=classifier, tokenizer=words, device="cpu", top_k=None)
    out |= {f"class {row['label']}": row["score"] for row in sorter([texts()[0]])[0]}
    return out
