"""Whisper as CTranslate2 (faster-whisper) stores it, `model.bin`, converted once to a transformers folder in the cache.

A file begins with its version, the name of its layout and that layout's version; then come the variables, each as name,
shape, dtype and bytes, and names that stand for other variables. Numbers are little-endian, texts are as long as they
say and end in NUL (github.com/OpenNMT/CTranslate2, model_spec.py). Queries, keys and values share one matrix, and keys
have no bias, which is stored as zeros. The tokenizer is read from beside the file.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ...cache import make_once, sha256
from ...core.files.package_folder import converted_at
from ...errors import CheckpointError
from ..report.events import Reporter

if TYPE_CHECKING:
    from torch import Tensor

_DTYPES: Mapping[int, str] = MappingProxyType({0: "float32", 2: "int16", 3: "int32", 4: "float16", 5: "bfloat16"})
_INT8 = 1
_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "position_encodings/encodings": "embed_positions.weight", "embeddings/weight": "embed_tokens.weight",
        "self_attention/layer_norm/": "self_attn_layer_norm.", "self_attention/linear_1/": "self_attn.out_proj.",
        "attention/layer_norm/": "encoder_attn_layer_norm.", "attention/linear_0/": "encoder_attn.q_proj.",
        "attention/linear_2/": "encoder_attn.out_proj.", "ffn/layer_norm/": "final_layer_norm.",
        "ffn/linear_0/": "fc1.", "ffn/linear_1/": "fc2.", "gamma": "weight", "beta": "bias",
    }
)  # fmt: skip
_JOINED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"self_attention/linear_0/": ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
     "attention/linear_1/": ("encoder_attn.k_proj.", "encoder_attn.v_proj.")}
)  # fmt: skip


def is_model(path: Path) -> bool:
    """Whether a file is called as CTranslate2 calls a model's, or a part of one."""
    return re.fullmatch(r"model\.bin(\.part.?\d+)?", path.name) is not None


def converted(files: Sequence[Path], reporter: Reporter) -> Path:
    """The folder with the model as safetensors, its config and its processor.

    Args:
        files: the model's file, or its parts in their order.

    Raises:
        CheckpointError: they do not hold the weights of a Whisper in floating point, or the tokenizer is not there.
    """
    folder = converted_at(files[0], sha256(*files))
    if folder.is_dir():
        return folder
    reporter.note(f"converting {files[0].name} to safetensors (once)")
    return make_once(folder, lambda work: _convert(files, work))


def _convert(files: Sequence[Path], work: Path) -> None:
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor

    variables = _read(b"".join(file.read_bytes() for file in files), files[0])
    tokenizer = _tokenizer(files[0])
    config, generation = _configs(variables, tokenizer, files[0])
    model = WhisperForConditionalGeneration(config)
    try:
        model.model.load_state_dict(dict(_renamed(variables)))
    except RuntimeError as error:
        raise _not_ours(files[0], str(error).splitlines()[-1].strip()[:160]) from error
    model.generation_config = generation
    model.save_pretrained(work)
    extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    WhisperProcessor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(work)
    origin = {"source": [file.name for file in files], "source_sha256": sha256(*files)}
    (work / "origin.json").write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")


def _read(raw: bytes, file: Path) -> dict[str, Tensor]:
    """The variables of a file.

    Raises:
        CheckpointError: it is none of CTranslate2's, of no Whisper, or its weights are quantised.
    """
    import torch

    at = 0

    def take(kind: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{kind}", raw, at)
        at += struct.calcsize(f"<{kind}")
        return int(value)

    def text() -> str:
        nonlocal at
        length = take("H")
        at += length
        return raw[at - length : at - 1].decode()

    out: dict[str, Tensor] = {}
    try:
        version, layout, _, count = take("I"), text(), take("I"), take("I")
        if layout != "WhisperSpec":
            raise _not_ours(file, f"{layout!r}, version {version}"[:160])
        for _ in range(count):
            name, shape = text(), [take("I") for _ in range(take("B"))]
            dtype, length = take("B"), take("I")
            if dtype == _INT8 and shape:
                raise CheckpointError("the weights are quantised", where=file, got=f"{name}: int8",
                                      fix="take the float16 model; model.quantize stores it in int8")  # fmt: skip
            if dtype in _DTYPES:
                part = bytearray(raw[at : at + length])
                out[name] = torch.frombuffer(part, dtype=getattr(torch, _DTYPES[dtype])).reshape(shape)
            at += length
    except CheckpointError:
        raise
    except (struct.error, UnicodeDecodeError, ValueError, RuntimeError) as error:
        raise _not_ours(file, "it ends too soon, or is damaged") from error
    return out


def _renamed(variables: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The weights under transformers' names, in float32."""
    import torch

    for name, tensor in variables.items():
        if not tensor.is_floating_point() or not tensor.dim():
            continue
        side, _, rest = name.partition("/")
        layer = re.match(r"layer_(\d+)/", rest)
        start = f"{side}.layers.{layer[1]}." if layer else f"{side}."
        rest = rest[layer.end() :] if layer else rest
        joined = next((found for found in _JOINED if rest.startswith(found)), None)
        if joined is not None:
            parts = zip(_JOINED[joined], tensor.float().chunk(len(_JOINED[joined])), strict=True)
            for target, part in parts:
                if rest.endswith("weight") or "k_proj" not in target:
                    yield f"{start}{target}{rest.removeprefix(joined)}", part.clone()
            continue
        for theirs, ours in _NAMES.items():
            if rest.startswith(theirs) or (len(theirs) < 6 and rest.endswith(theirs)):
                rest = rest.replace(theirs, ours, 1)
        yield f"{start}{rest.replace('/', '.')}", tensor.to(torch.float32)


def _configs(variables: Mapping[str, Tensor], tokenizer: Any, file: Path) -> tuple[Any, Any]:
    """The model's config, and its settings of generation."""
    from transformers import GenerationConfig, WhisperConfig

    said = json.loads((file.parent / "config.json").read_text(encoding="utf-8"))
    try:
        vocabulary, width = variables["decoder/embeddings/weight"].shape
        heads = [int(variables[f"{side}/num_heads"]) for side in ("encoder", "decoder")]
        mels = variables["encoder/conv1/weight"].shape[1]
        inner = [variables[f"{side}/layer_0/ffn/linear_0/weight"].shape[0] for side in ("encoder", "decoder")]
        places = [len(variables[f"{side}/position_encodings/encodings"]) for side in ("encoder", "decoder")]
    except KeyError as error:
        raise _not_ours(file, f"no {error.args[0]}") from error
    layers = [len({n for n in variables if re.fullmatch(rf"{side}/layer_\d+/ffn/linear_0/weight", n)})
              for side in ("encoder", "decoder")]  # fmt: skip
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in (
        "endoftext", "startoftranscript", "transcribe", "translate", "notimestamps", "startofprev")}  # fmt: skip
    end, start = ids["endoftext"], ids["startoftranscript"]
    common = {"decoder_start_token_id": start, "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    config = WhisperConfig(
        vocab_size=vocabulary, d_model=width, num_mel_bins=mels, max_source_positions=places[0],
        max_target_positions=places[1], encoder_layers=layers[0], decoder_layers=layers[1],
        encoder_attention_heads=heads[0], decoder_attention_heads=heads[1], encoder_ffn_dim=inner[0],
        decoder_ffn_dim=inner[1], **common,
    )  # fmt: skip
    languages = said.get("lang_ids") or []
    several: dict[str, Any] = {}
    if languages:
        several["lang_to_id"] = dict(zip(tokenizer.convert_ids_to_tokens(languages), languages, strict=True))
        several["task_to_id"] = {name: ids[name] for name in ("transcribe", "translate")}
    return config, GenerationConfig(
        **common, max_length=places[1], is_multilingual=bool(languages), no_timestamps_token_id=ids["notimestamps"],
        prev_sot_token_id=ids["startofprev"], alignment_heads=said.get("alignment_heads"),
        suppress_tokens=said.get("suppress_ids"), begin_suppress_tokens=said.get("suppress_ids_begin"), **several,
    )  # fmt: skip


def _tokenizer(file: Path) -> Any:
    """The tokenizer from beside the file.

    Raises:
        CheckpointError: it is not there.
    """
    from transformers import WhisperTokenizer

    beside = [file.parent / name for name in ("tokenizer.json", "config.json")]
    lacking = next((path.name for path in beside if not path.is_file()), None)
    if lacking is not None:
        raise CheckpointError(
            f"no {lacking} beside the model", where=file, expected="a folder as faster-whisper has it"
        )
    return WhisperTokenizer.from_pretrained(
        str(file.parent), tokenizer_file=str(beside[0]), pad_token="<|endoftext|>", model_max_length=448
    )


def _not_ours(file: Path, got: str) -> CheckpointError:
    return CheckpointError("not a Whisper as CTranslate2 stores it", where=file, got=got,
                           fix="name a model folder, as transformers saves it")  # fmt: skip
