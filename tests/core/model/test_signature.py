from __future__ import annotations

import copy
import gc
import inspect
import pickle
import weakref

import torch
from torch import nn

import afina


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, pixels, labels=None):
        """What the base does."""
        return self.inner(pixels)


def adapted():
    return afina.get_peft_model(Named(), afina.LoraConfig(target_modules=["inner"], init_lora_weights=False))


def test_forward_takes_what_the_bases_takes():
    assert inspect.signature(adapted().forward) == inspect.signature(Named().forward)


def test_copies_pickles_and_compiled_models_run_their_own_weights():
    model, x = adapted(), torch.randn(2, 4)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
        with torch.no_grad():
            other.base_model.model.inner.base_layer.weight.add_(1)
        assert not torch.equal(other(x), model(x))
    assert torch.allclose(torch.compile(model, fullgraph=True)(x), model(x), atol=1e-6)


def test_a_model_is_freed_with_its_last_name():
    model = adapted()
    model(torch.randn(2, 4))
    seen = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert seen() is None
    finally:
        gc.enable()
