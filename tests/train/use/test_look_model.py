"""What `afina inspect` sees of a model without its weights is what training finds with them."""

from __future__ import annotations

import pytest
import torch

from afina.errors import CheckpointError
from afina.train.use import look_model
from afina.train.use.look_model import counts, look, on_meta, pipeline_parts, step_of_one


def seen(folder):
    found = look_model.look(look_model.on_meta(str(folder)))
    told = []
    counts = look_model.counts(lambda: look_model.on_meta(str(folder)), told=lambda n, of: told.append((n, of)))
    return found, counts, told


@pytest.fixture(scope="module")
def model_seen(tmp_path_factory, model_folder, child):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINA_CACHE", str(tmp_path_factory.mktemp("cache")))
        return child(seen, model_folder)


def test_modules_of_like_layers_stand_together(model_seen):
    found = model_seen[0]
    groups = {g.name: (g.kind, g.shape, g.count) for g in found.groups}
    assert found.kind == "LlamaForCausalLM"
    assert groups["model.layers.*.self_attn.k_proj"] == ("Linear", (16, 32), 2)
    assert groups["model.embed_tokens"] == ("Embedding", (259, 32), 1)
    assert groups["model.norm"] == ("LlamaRMSNorm", (32,), 1)


def test_every_method_is_counted_or_says_what_it_needs(model_seen):
    from afina.core.config import methods

    _, counts, told = model_seen
    assert {c.method for c in counts} == set(methods())
    assert told[-1] == (len(counts), len(counts))
    by_name = {c.method: c for c in counts}
    assert by_name["FULL"].trainable == model_seen[0].parameters
    assert by_name["PROMPT_TUNING"].trainable == 20 * 32
    assert by_name["ADALORA"].trainable is not None
    assert "bias" in by_name["BITFIT"].why
    assert all((c.trainable is None) == bool(c.why) for c in counts)


def test_counts_without_weights_are_those_with_them(model_seen, model_folder, child):
    by_name = {c.method: c.trainable for c in model_seen[1]}
    assert child(counted, model_folder) == {n: by_name[n] for n in ("LORA", "IA3", "BOTTLENECK", "LN_TUNING", "VERA")}


def counted(folder):
    from transformers import AutoModelForCausalLM

    from afina.core.config import methods
    from afina.core.model.mapping import get_peft_model

    out = {}
    for name in ("LORA", "IA3", "BOTTLENECK", "LN_TUNING", "VERA"):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), methods()[name].config())
        out[name] = model.get_nb_trainable_parameters()[0]
    return out


def test_model_on_meta_takes_no_memory_for_weights(model_folder, child):
    assert child(devices, model_folder) == {"meta"}


def devices(folder):
    return {p.device.type for p in look_model.on_meta(str(folder)).parameters()}


def test_folder_without_a_config_is_told(tmp_path, child):
    with pytest.raises(CheckpointError, match="cannot read the model's config"):
        child(devices, tmp_path)
    assert torch.get_num_threads() == 1


def test_models_of_images_are_counted_and_prompts_say_why_not(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32)
    ViTForImageClassification(config).save_pretrained(tmp_path)
    found = {count.method.lower(): count for count in counts(lambda: on_meta(str(tmp_path)))}
    assert found["lora"].trainable
    assert found["cpt"].trainable is None
    assert "takes no tokens" in found["cpt"].why


def test_parts_of_a_diffusion_pipeline_are_counted(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(32, 32), down_block_types=down, up_block_types=up,
        cross_attention_dim=32, norm_num_groups=8, attention_head_dim=8,
    )  # fmt: skip
    unet.save_pretrained(tmp_path / "unet")
    model = on_meta(str(tmp_path / "unet"))
    assert look(model).parameters == sum(p.numel() for p in unet.parameters())
    (lora,) = counts(lambda: on_meta(str(tmp_path / "unet")), ["lora"])
    assert lora.trainable
    assert lora.why == "on all-linear"


def families():
    """A tiny config of each kind of model that is no language model, and what is adapted in it by default."""
    import transformers as t

    block = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    stages = {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}
    whisper = {f"{side}_{key}": n for side in ("encoder", "decoder")
               for key, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))}  # fmt: skip
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": 9}
    eye, words = {**block, "image_size": 32, "patch_size": 16}, {**block, **ends, "max_position_embeddings": 8}
    return {
        "vit": (t.ViTForImageClassification, t.ViTConfig(**eye), {"q_proj", "v_proj"}, 2),
        "convnext": (t.ConvNextForImageClassification, t.ConvNextConfig(**stages), {"pwconv1", "pwconv2"}, 8),
        "resnet": (t.ResNetForImageClassification, t.ResNetConfig(**stages, embedding_size=8), {"convolution"}, 16),
        "clip": (t.CLIPModel, t.CLIPConfig(text_config=words, vision_config=eye), {"q_proj", "v_proj"}, 4),
        "whisper": (t.WhisperForConditionalGeneration,
                    t.WhisperConfig(d_model=16, decoder_start_token_id=1, **whisper, **ends), {"q_proj", "v_proj"}, 6),
        "wav2vec2": (t.Wav2Vec2ForCTC, t.Wav2Vec2Config(**block, vocab_size=9, conv_dim=[8] * 7,
                                                        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2),
                     {"q_proj", "v_proj"}, 2),
        "mobilenet_v2": (t.MobileNetV2ForImageClassification, t.MobileNetV2Config(depth_multiplier=0.1, min_depth=8),
                         {r"(.*\.)?(expand_1x1|reduce_1x1|conv_1x1)\.convolution"}, 34),
    }  # fmt: skip


_OTHERS = pytest.mark.whole("seen the same way for all")


@pytest.mark.parametrize(
    "name", [n if n in ("resnet", "wav2vec2") else pytest.param(n, marks=_OTHERS) for n in families()]
)
def test_models_of_images_and_sounds_are_seen_with_their_layers_defaults_and_memory(name, tmp_path):
    kind, config, targets, adapted = families()[name]
    config.architectures = [kind.__name__]
    config.save_pretrained(tmp_path)  # no weights are needed
    found, step = look(on_meta(str(tmp_path))), step_of_one(lambda: on_meta(str(tmp_path)))
    assert found.kind == kind.__name__
    assert (set(found.targets), found.adapted) == (targets, adapted)
    assert found.layers["linear"] > 0
    assert found.layers["conv"] > 0
    assert step.working > 0
    told = {count.method: count for count in counts(lambda: on_meta(str(tmp_path)), ["lora", "bitfit", "shadow"])}
    assert told["LORA"].trainable
    assert told["LORA"].why == ""
    assert told["BITFIT"].trainable or "bias" in told["BITFIT"].why
    assert told["SHADOW"].trainable or told["SHADOW"].why


def test_a_pipelines_models_are_found_by_its_index(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    diffusers.AutoencoderKL(norm_num_groups=8, block_out_channels=(32,)).save_pretrained(tmp_path / "vae")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "model_index.json").write_text('{"_class_name": "P", "vae": ["diffusers", "AutoencoderKL"], '
                                               '"scheduler": ["diffusers", "DDPMScheduler"]}')  # fmt: skip
    assert pipeline_parts(tmp_path) == {"vae": str(tmp_path / "vae")}
    assert pipeline_parts(tmp_path / "vae") == {}
    step = step_of_one(lambda: on_meta(str(tmp_path / "vae")))
    assert step.inputs == {"sample": (1, 3, 32, 32)}
