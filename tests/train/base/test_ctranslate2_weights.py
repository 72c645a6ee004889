from __future__ import annotations

import json
import struct

import pytest
import torch

from afina.core.files.package_folder import in_parts, model_folder
from afina.errors import CheckpointError
from afina.train.base.base_model import base_location
from afina.train.base.ctranslate2_weights import converted, is_model
from afina.train.recipe.sections import ModelSection
from afina.train.report.events import Reporter

from .. import tiny_sounds

DTYPES = {torch.float32: 0, torch.int8: 1, torch.int16: 2, torch.float16: 4}


def written(variables, layout="WhisperSpec"):
    """Variables as CTranslate2 writes them."""

    def text(value):
        raw = value.encode() + b"\0"
        return struct.pack("<H", len(raw)) + raw

    out = struct.pack("<I", 6) + text(layout) + struct.pack("<II", 3, len(variables))
    for name, tensor in variables.items():
        raw = tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.dim() else tensor.numpy().tobytes()
        shape = struct.pack(f"<B{tensor.dim()}I", tensor.dim(), *tensor.shape)
        out += text(name) + shape + struct.pack("<BI", DTYPES[tensor.dtype], len(raw)) + raw
    return out + struct.pack("<I", 1) + text("decoder/projection/weight") + text("decoder/embeddings/weight")


def layer(side, state, prefix):
    def both(target, source):
        return {f"{target}/{'gamma' if 'norm' in target and n == 'weight' else 'beta' if 'norm' in target else n}":
                state[f"{prefix}.{source}.{n}"] for n in ("weight", "bias")}  # fmt: skip

    def joined(target, part, names):
        biases = [state.get(f"{prefix}.{part}.{n}.bias") for n in names]
        zero = torch.zeros_like(next(b for b in biases if b is not None))
        return {f"{target}/weight": torch.cat([state[f"{prefix}.{part}.{n}.weight"] for n in names]),
                f"{target}/bias": torch.cat([zero if b is None else b for b in biases])}  # fmt: skip

    out = {**both("self_attention/layer_norm", "self_attn_layer_norm"), **both("ffn/layer_norm", "final_layer_norm"),
           **joined("self_attention/linear_0", "self_attn", ("q_proj", "k_proj", "v_proj")),
           **both("self_attention/linear_1", "self_attn.out_proj"), **both("ffn/linear_0", "fc1"),
           **both("ffn/linear_1", "fc2")}  # fmt: skip
    if side == "decoder":
        out |= {**both("attention/layer_norm", "encoder_attn_layer_norm"),
                **both("attention/linear_0", "encoder_attn.q_proj"),
                **joined("attention/linear_1", "encoder_attn", ("k_proj", "v_proj")),
                **both("attention/linear_2", "encoder_attn.out_proj")}  # fmt: skip
    return out


def as_ctranslate2(model):
    state = {name: tensor.half() for name, tensor in model.model.state_dict().items()}
    out = {}
    for side in ("encoder", "decoder"):
        out[f"{side}/num_heads"] = torch.tensor(4, dtype=torch.int16)
        out[f"{side}/position_encodings/encodings"] = state[f"{side}.embed_positions.weight"]
        out |= {f"{side}/layer_norm/{a}": state[f"{side}.layer_norm.{b}"]
                for a, b in (("gamma", "weight"), ("beta", "bias"))}  # fmt: skip
        for i in range(2):
            out |= {f"{side}/layer_{i}/{k}": v for k, v in layer(side, state, f"{side}.layers.{i}").items()}
    for conv in ("conv1", "conv2"):
        out |= {f"encoder/{conv}/{n}": state[f"encoder.{conv}.{n}"] for n in ("weight", "bias")}
    out["decoder/embeddings/weight"] = state["decoder.embed_tokens.weight"]
    return out


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A Whisper, and a folder with it as CTranslate2 stores it, but for the weights."""
    from transformers import WhisperForConditionalGeneration

    folder = tmp_path_factory.mktemp("theirs")
    model = WhisperForConditionalGeneration.from_pretrained(tiny_sounds.write_whisper(folder / "whisper"))
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    tokenizer = tiny_sounds.whisper_tokenizer()
    tokenizer.save_pretrained(folder)
    languages = [i for word, i in tokenizer.get_added_vocab().items() if len(word) == 6]
    said = {"lang_ids": languages, "suppress_ids": [1, 2], "suppress_ids_begin": [3], "alignment_heads": [[1, 1]]}
    (folder / "config.json").write_text(json.dumps(said))
    return model, folder


@pytest.mark.parametrize("parts", [1, 2])
def test_weights_settings_and_processor_are_those_of_the_file(parts, theirs):
    from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

    model, folder = theirs
    raw = written(as_ctranslate2(model))
    cut = [raw] if parts == 1 else [raw[:5000], raw[5000:]]
    files = [folder / ("model.bin" if parts == 1 else f"model.bin.part{i + 1}") for i in range(parts)]
    for file, part in zip(files, cut, strict=True):
        file.write_bytes(part)
    made = str(converted(files, Reporter()))
    again = AutoModelForSpeechSeq2Seq.from_pretrained(made)
    own = model.state_dict()
    assert own.keys() == again.state_dict().keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in again.state_dict().items())
    assert sum(tensor.abs().sum() for tensor in own.values()) > 1
    config, settings = again.config, again.generation_config
    assert (config.encoder_layers, config.decoder_attention_heads, config.num_mel_bins) == (2, 4, 8)
    assert settings.lang_to_id["<|cy|>"] == AutoProcessor.from_pretrained(made).tokenizer.convert_tokens_to_ids(
        "<|cy|>"
    )
    assert settings.suppress_tokens == [1, 2]
    if parts == 1:
        assert base_location(ModelSection(path=str(files[0])), Reporter()) == made


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: written(v)[:400], "ends too soon"),
        (lambda v: written(v, "TransformerSpec"), "'TransformerSpec', version 6"),
        (lambda v: written({**v, "encoder/conv1/bias": torch.zeros(32, dtype=torch.int8)}), "are quantised"),
        (lambda v: written({k: t for k, t in v.items() if "conv2" not in k}), "not a Whisper"),
        (lambda v: written({k: t for k, t in v.items() if "num_heads" not in k}), "num_heads"),
    ],
)
def test_other_files_are_refused(change, said, theirs):
    model, folder = theirs
    (folder / "model.bin").write_bytes(change(as_ctranslate2(model)))
    with pytest.raises(CheckpointError, match=said) as told:
        converted([folder / "model.bin"], Reporter())
    assert len(str(told.value).splitlines()) <= 4


def test_without_its_tokenizer_a_file_is_refused(theirs, tmp_path):
    (tmp_path / "model.bin").write_bytes(written(as_ctranslate2(theirs[0])))
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json beside the model"):
        converted([tmp_path / "model.bin"], Reporter())


def test_parts_of_packages_are_one_model(tmp_path, monkeypatch):
    from afina.core.files import package_folder

    reference = "package:one==1.0/a/model.bin.part1+package:two/b/model.bin.part2"
    assert in_parts(reference) == ["package:one==1.0/a/model.bin.part1", "package:two/b/model.bin.part2"]
    assert in_parts("package:one==1.0+cpu/a") == ["package:one==1.0+cpu/a"]
    files = {"one": tmp_path / "model.bin.part1", "two": tmp_path / "model.bin.part2"}
    for name, file in files.items():
        file.write_bytes(name.encode())
    monkeypatch.setattr(package_folder, "installed", lambda name, version, inside: files[name])
    folder = package_folder.converted_at(files["one"], package_folder.sha256(*files.values()))
    folder.mkdir(parents=True)
    assert model_folder(reference) == str(folder)


def test_models_are_known_by_their_names(tmp_path):
    assert [is_model(tmp_path / name) for name in ("model.bin", "model.bin.part1", "model.bin.x", "model.gguf")] == [
        True, True, False, False,
    ]  # fmt: skip
