"""Scenarios of libraries that load adapters into models of their own."""

from __future__ import annotations

import torch

from .toys import WORDS, adapter_size, causal, lora, picture, pipeline, same_files, same_start, texts, tokenizer


def diffusers_pipeline(folder):
    """A diffusers pipeline that loads, weighs, fuses, unfuses, hot-swaps and unloads LoRAs."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    def trained(seed, r=4):
        pipe = pipeline()
        pipe.unet.add_adapter(lora(r=r, target_modules=["to_q", "to_k", "to_v", "to_out.0"], task_type=None))
        torch.manual_seed(seed)
        for p in pipe.unet.parameters():
            if p.requires_grad:
                p.data.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed + p.numel())) * 0.2)
        state = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
        where = folder / f"lora{seed}"
        StableDiffusionPipeline.save_lora_weights(str(where), state, safe_serialization=True)
        return where

    first, second = trained(1), trained(2)
    same_files(first, second)
    pipe = pipeline()
    out = {"base": picture(pipe)}
    pipe.load_lora_weights(str(first), adapter_name="first")
    out["first"] = picture(pipe)
    pipe.load_lora_weights(str(second), adapter_name="second")
    pipe.set_adapters(["first", "second"], [0.7, 0.3])
    out["both"] = picture(pipe)
    pipe.disable_lora()
    out["off"] = picture(pipe)
    pipe.enable_lora()
    pipe.set_adapters("first")
    pipe.fuse_lora(lora_scale=0.5)
    out["fused"] = picture(pipe)
    pipe.unfuse_lora()
    pipe.delete_adapters("second")
    out["unfused"] = picture(pipe)
    pipe.unload_lora_weights()
    out["unloaded"] = picture(pipe)
    assert out["off"] == out["base"] != out["first"]
    assert abs(out["unloaded"] - out["base"]) < 1e-3
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights(str(first), adapter_name="swap")
    pipe.load_lora_weights(str(second), adapter_name="swap", hotswap=True)
    out["swapped"] = picture(pipe)
    return out


def sentence(folder):
    """A sentence-transformers model: adapter added, trained a little, saved and loaded."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(WORDS),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=64,
        )
    ).save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")

    def fresh():
        body = Transformer(str(folder / "base"))
        return SentenceTransformer(modules=[body, Pooling(32)], device="cpu")

    model = fresh()
    out = {"before": float(torch.tensor(model.encode(texts())).abs().sum())}
    model.add_adapter(lora(task_type="FEATURE_EXTRACTION", target_modules=["query", "value"]))
    same_start(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for p in model.modules():
        if isinstance(p, torch.nn.Dropout):
            p.p = 0.0
    for step in range(3):
        features = model.preprocess(texts()) if hasattr(model, "preprocess") else model.tokenize(texts())
        vectors = model(features)["sentence_embedding"]
        loss = (vectors @ vectors.T).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        out[f"loss@{step}"] = float(loss)
    model.eval()
    out["after"] = float(torch.tensor(model.encode(texts())).abs().sum())
    model.save_pretrained(str(folder / "saved"))
    again = SentenceTransformer(str(folder / "saved"), device="cpu")
    out["loaded"] = float(torch.tensor(again.encode(texts())).abs().sum())
    assert abs(out["loaded"] - out["after"]) < 1e-4 * out["after"] != out["before"]
    return out


def loop(folder):
    """accelerate: a loop of one's own, its state saved and loaded, the adapter's alone through its functions."""
    from accelerate import Accelerator
    from accelerate.utils.fsdp_utils import _get_model_state_dict, _set_model_state_dict
    from accelerate.utils.modeling import is_peft_model
    from peft import PeftModel, get_peft_model

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = same_start(get_peft_model(causal(), lora()))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    rows = torch.randint(4, 20, (8, 9), generator=torch.Generator().manual_seed(0))
    model, optimizer, batches = accelerator.prepare(model, optimizer, torch.utils.data.DataLoader(rows, 2))

    def epoch():
        losses = []
        for batch in batches:
            with accelerator.accumulate(model):
                loss = model(input_ids=batch, labels=batch).loss
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(float(loss))
        return losses

    out = {f"loss {i}": v for i, v in enumerate(epoch())}
    accelerator.save_state(str(folder / "state"))
    out |= {f"next {i}": v for i, v in enumerate(epoch())}
    accelerator.load_state(str(folder / "state"))
    out |= {f"again {i}": v for i, v in enumerate(epoch())}
    assert all(abs(out[f"next {i}"] - out[f"again {i}"]) < 1e-6 for i in range(4))
    assert is_peft_model(model)
    plain = accelerator.unwrap_model(model)
    plain.save_pretrained(folder / "adapter", state_dict=accelerator.get_state_dict(model))
    alone = {k: v.clone() for k, v in _get_model_state_dict(plain, adapter_only=True).items()}
    loaded = PeftModel.from_pretrained(causal(), str(folder / "adapter"))
    for parameter in plain.parameters():
        if parameter.requires_grad:
            parameter.data.zero_()
    _set_model_state_dict(plain, alone, adapter_only=True)
    out["loaded"] = float(loaded(rows).logits.abs().sum())
    out["restored"] = float(plain.eval()(rows).logits.abs().sum())
    return {**out, **adapter_size(folder / "adapter")}
