from __future__ import annotations

from torch import nn

from afina.plan.example_inputs import example_inputs, mean_of_output


def test_examples_have_the_shapes_that_a_models_config_names():
    from transformers import BertConfig, BertModel, ViTConfig, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    eye = ViTModel(ViTConfig(image_size=(8, 12), patch_size=4, num_channels=1, **sizes))
    assert {k: tuple(v.shape) for k, v in example_inputs(eye, 2).items()} == {"pixel_values": (2, 1, 8, 12)}
    reads = BertModel(BertConfig(vocab_size=9, max_position_embeddings=20, **sizes))
    inputs = example_inputs(reads)
    assert {k: tuple(v.shape) for k, v in inputs.items()} == {"input_ids": (1, 20)}
    mean_of_output(reads, inputs).backward()
    assert all(p.grad is not None for n, p in reads.named_parameters() if "pooler" not in n)


def test_nothing_is_made_up_for_a_module_of_ones_own():
    assert example_inputs(nn.Linear(2, 2)) is None
