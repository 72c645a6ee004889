"""Scripts that people have written for 🤗 PEFT, with only the import changed, on small random models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from .core.tiny import bert, nudge, t5


@pytest.mark.parametrize("architecture", ["T5", "MT5"])
def test_summarising_script_trains_saves_and_generates(
    architecture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForSeq2SeqLM

    from afina import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model

    t5(architecture).save_pretrained(tmp_path / "base")
    peft_config = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM, inference_mode=False, r=8, lora_alpha=32, lora_dropout=0.1
    )
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base")
    model = get_peft_model(model, peft_config)
    model.print_trainable_parameters()
    # r · (in + out) of q and v: 2 encoder blocks with one attention, 2 decoder blocks with two.
    trainable = 2 * (2 + 4) * 8 * (16 + 16)
    assert capsys.readouterr().out.startswith(f"trainable params: {trainable:,d} || all params: ")

    tokens = torch.tensor([[3, 8, 5, 39], [7, 2, 9, 39]])
    model.train()
    model(input_ids=tokens, labels=tokens).loss.backward()
    nudge(model)
    model.save_pretrained(tmp_path / "output_dir")
    assert {p.name for p in (tmp_path / "output_dir").iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip

    config = PeftConfig.from_pretrained(str(tmp_path / "output_dir"))
    assert config.base_model_name_or_path == str(tmp_path / "base")
    again = AutoModelForSeq2SeqLM.from_pretrained(config.base_model_name_or_path)
    again = PeftModel.from_pretrained(again, str(tmp_path / "output_dir"))
    again = again.to("cpu")
    again.eval()
    with torch.no_grad():
        outputs = again.generate(input_ids=tokens, max_new_tokens=10)
    assert torch.equal(outputs, model.eval().generate(input_ids=tokens, max_new_tokens=10))


@pytest.mark.parametrize("head", ["BertLMHeadModel", "BertForSequenceClassification"])
def test_encoder_script_with_a_causal_task_adapts_query_and_value(head: str) -> None:
    from afina import LoraConfig, get_peft_model

    lora_config = LoraConfig(
        r=8, lora_alpha=16, target_modules=["query", "value"], lora_dropout=0.1, bias="none", task_type="CAUSAL_LM"
    )
    model = get_peft_model(bert(head), lora_config)
    assert type(model).__name__ == "PeftModelForCausalLM"
    names = {n.split(".adapters.")[0].rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad}
    assert names == {"query", "value"}
    assert model.get_nb_trainable_parameters()[0] == 2 * 2 * 8 * (16 + 16)
    tokens = torch.tensor([[3, 8, 5, 9]])
    labels = tokens if head == "BertLMHeadModel" else torch.tensor([1])
    loss = model.train()(input_ids=tokens, labels=labels).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
