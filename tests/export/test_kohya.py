"""LoRA of diffusion models in one file: what kohya's names say, diffusers reads, and comes back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import afina
from afina.errors import AfinaError, CheckpointError, NumericError
from afina.export import kohya
from afina.export.diffusion_names import original_name, table

from ..battery.whole import nudge

TARGETS = ["to_q", "to_v", "conv1", "proj_in", "conv_shortcut"]


def unet() -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8, attention_head_dim=4,
    ).eval()  # fmt: skip


def text_encoder() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(1)
    return CLIPTextModel(CLIPTextConfig(vocab_size=64, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
                                        num_attention_heads=2, max_position_embeddings=16)).eval()  # fmt: skip


def trained() -> dict[str, Any]:
    """A UNet and a text encoder with LoRA; ranks and scalings differ from layer to layer."""
    config = afina.LoraConfig(r=2, lora_alpha=6, target_modules=TARGETS, rank_pattern={"to_v": 3},
                              alpha_pattern={"conv1": 5})  # fmt: skip
    text = afina.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "out_proj"])
    out = {"unet": afina.get_peft_model(unet(), config), "text_encoder": afina.get_peft_model(text_encoder(), text)}
    for model in out.values():
        nudge(model, 1)
        model.eval()
    return out


def says(unet: Any = None, text_encoder: Any = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        if text_encoder is not None:
            return text_encoder(input_ids=torch.arange(3, 12)[None]).last_hidden_state
        image, words = (torch.randn(shape, generator=generator) for shape in ((1, 4, 8, 8), (1, 5, 8)))
        return unet(image, 3, words).sample


@pytest.mark.parametrize(("layout", "original"), [("kohya", False), ("kohya", True), ("diffusers", False)])
def test_what_was_written_comes_back(layout: str, original: bool, tmp_path: Path) -> None:
    parts = trained()
    kohya.save(tmp_path / "a.safetensors", parts, layout=layout, original=original)
    again = kohya.load(tmp_path / "a.safetensors", {"unet": unet(), "text_encoder": text_encoder()})
    for name in parts:
        expected = says(**{name: parts[name]})
        torch.testing.assert_close(says(**{name: again[name].eval()}), expected, rtol=1e-5, atol=1e-5)
        with again[name].disable_adapter():
            assert not torch.allclose(says(**{name: again[name]}), expected, atol=1e-3)


@pytest.mark.parametrize(("layout", "original"), [("kohya", False), ("kohya", True), ("diffusers", False)])
def test_diffusers_reads_it_as_the_adapter(layout: str, original: bool, tmp_path: Path) -> None:
    from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader

    parts = trained()
    kohya.save(tmp_path / "a.safetensors", parts, layout=layout, original=original)
    plain = unet()
    before, text = says(plain), text_encoder()
    state, alphas = Loader.lora_state_dict(tmp_path, weight_name="a.safetensors", unet_config=plain.config)[:2]
    Loader.load_lora_into_unet(state, alphas, unet=plain)
    expected = says(parts["unet"])
    torch.testing.assert_close(says(plain), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, before, atol=1e-3)
    Loader.load_lora_into_text_encoder(state, alphas, text_encoder=text, prefix="text_encoder")
    expected = says(text_encoder=parts["text_encoder"])
    torch.testing.assert_close(says(text_encoder=text), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, says(text_encoder=text_encoder()), atol=1e-3)


def test_kohyas_names_alphas_and_text_encoders(tmp_path: Path) -> None:
    kohya.save(tmp_path / "a.safetensors", trained())
    tensors = load_file(tmp_path / "a.safetensors")
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    assert tensors[f"{name}.lora_down.weight"].shape == (2, 16)
    assert tensors[f"{name}.alpha"] == 6
    assert tensors["lora_unet_down_blocks_0_resnets_0_conv1.alpha"] == 5
    assert tensors["lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha"] == 4


@pytest.mark.parametrize(("path", "there"), [
    ("down_blocks.1.attentions.0.proj_in", "input_blocks.4.1.proj_in"),
    ("down_blocks.2.resnets.1.conv1", "input_blocks.8.0.in_layers.2"),
    ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
    ("mid_block.resnets.1.time_emb_proj", "middle_block.2.emb_layers.1"),
    ("mid_block.attentions.0.proj_out", "middle_block.1.proj_out"),
    ("up_blocks.0.attentions.2.proj_in", "output_blocks.2.1.proj_in"),
    ("up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv"),
    ("up_blocks.2.upsamplers.0.conv", "output_blocks.8.1.conv"),
    ("up_blocks.2.resnets.0.conv_shortcut", "output_blocks.6.0.skip_connection"),
    ("conv_in", "input_blocks.0.0"),
])  # fmt: skip
def test_names_of_the_original_unet(path: str, there: str) -> None:
    assert original_name(path, frozenset({0, 1})) == there


def test_no_two_layers_share_a_name() -> None:
    paths = list(kohya._layers(unet()))
    names = table("unet", paths)
    assert set(names.values()) == set(paths)
    assert len(names) == 2 * len(paths) - sum(original_name(p) == p for p in paths)


def changed(file: Path, change: Any) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize(("change", "error", "says"), [
    (lambda t: t.update({"lora_unet_nowhere.lora_down.weight": torch.ones(2, 4)}), CheckpointError, "1 layers"),
    (lambda t: t.clear() or t.update({"x.weight": torch.ones(1)}), CheckpointError, "other than LoRA's factors"),
    (lambda t: t.update({next(iter(t)).rpartition(".")[0] + ".dora_scale": torch.ones(1)}), CheckpointError, "other"),
    (lambda t: t.pop("lora_unet_conv_in_x.alpha", None) or t.pop(next(k for k in t if "lora_up" in k)),
     CheckpointError, "only one of the two"),
    (lambda t: t.update({next(k for k in t if "lora_up" in k): torch.ones(3, 3)}), CheckpointError, "do not fit"),
    (lambda t: next(v for k, v in t.items() if "lora_up" in k).fill_(float("nan")), NumericError, "not finite"),
], ids=["unknown", "nothing", "more", "half", "shape", "nan"])  # fmt: skip
def test_a_file_that_does_not_fit_changes_nothing(change: Any, error: Any, says: str, tmp_path: Path) -> None:
    kohya.save(tmp_path / "a.safetensors", {"unet": trained()["unet"]})
    changed(tmp_path / "a.safetensors", change)
    model = unet()
    with pytest.raises(error, match=says) as told:
        kohya.load(tmp_path / "a.safetensors", {"unet": model})
    assert len(str(told.value).splitlines()) <= 4
    assert not any(isinstance(m, afina.PeftModel) or "Host" in type(m).__name__ for m in model.modules())


def test_a_file_for_another_part_loads_as_no_nothing(tmp_path: Path) -> None:
    kohya.save(tmp_path / "a.safetensors", {"text_encoder": trained()["text_encoder"]})
    with pytest.raises(CheckpointError, match="are in none of the models"):
        kohya.load(tmp_path / "a.safetensors", {"unet": unet()})


def test_what_is_no_low_rank_update_is_refused(tmp_path: Path) -> None:
    model = afina.get_peft_model(unet(), afina.LoraConfig(r=2, target_modules=["to_q"], use_dora=True))
    with pytest.raises(AfinaError, match="more than a fixed low-rank product"):
        kohya.save(tmp_path / "a.safetensors", {"unet": model})
    with pytest.raises(AfinaError, match="no such part"):
        kohya.save(tmp_path / "a.safetensors", {"vae": model})
    assert not list(tmp_path.iterdir())
