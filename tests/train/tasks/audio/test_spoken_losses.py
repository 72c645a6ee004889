"""The losses of a batch's texts are those that the model's own loss is made of."""

from __future__ import annotations

import pytest
import torch
from transformers import Wav2Vec2ForCTC

from afina.train.tasks.audio.spoken_losses import spoken_losses

from ... import tiny_sounds


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_losses_of_texts_that_are_spelt_make_the_models_own(tmp_path, reduction):
    model = Wav2Vec2ForCTC.from_pretrained(tiny_sounds.write_wav2vec2(tmp_path), ctc_loss_reduction=reduction).eval()
    torch.manual_seed(0)
    batch = {"input_values": torch.randn(3, 4000), "labels": torch.tensor([[5, 6, 7], [8, -100, -100], [5, 9, -100]])}
    batch["attention_mask"] = (torch.arange(4000) < torch.tensor([[4000], [3000], [2000]])).long()
    said = model(**batch)
    losses = spoken_losses(model, batch, said.logits, spells=True).detach()
    assert losses.std() > 0.01
    whole = losses.mean() if reduction == "mean" else losses.sum()
    assert float(whole) == pytest.approx(float(said.loss.detach()), rel=1e-5)


def test_loss_of_a_text_that_is_written_is_the_mean_over_its_tokens():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 8), torch.tensor([[1, 2, 3], [4, -100, -100]])
    losses = spoken_losses(torch.nn.Linear(1, 1), {"labels": labels}, logits, spells=False)
    each = -logits.log_softmax(2)
    expected = [float(each[0, [0, 1, 2], [1, 2, 3]].mean()), float(each[1, 0, 4])]
    assert losses.tolist() == pytest.approx(expected, rel=1e-6)
