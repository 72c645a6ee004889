"""GGUF for llama.cpp and what stands on it (Ollama, LM Studio): the merged model, or the adapter alone as LoRA.

Written from the format's own description and the names in the `gguf` package.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ...train.answers.generate import end_tokens
from ...train.base.base_model import config_of
from ...train.data.prompts import Prompter
from ...train.tasks.base import Known
from ..contract import LOW_RANK, MERGED, Comparison, Format, Subject
from . import gguf_names, gguf_tokens
from .gguf_names import Names, stored
from .modelfile import modelfile
from .peft_servers import plain_lora

MODEL, ADAPTER = "model.gguf", "adapter.gguf"
_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0",
               "q4_0": "MOSTLY_Q4_0"}  # fmt: skip


class _LlamaCpp(Format):
    """A format of llama.cpp's."""

    target: ClassVar[str] = "llama.cpp"
    module: ClassVar[str] = "node-llama-cpp"
    program: ClassVar[str] = "run_llama_cpp.mjs"
    packages: ClassVar[tuple[str, ...]] = ("gguf",)

    def foreseen(self, known: Known, *, as_lora: bool = False) -> str | None:
        found = super().foreseen(known, as_lora=as_lora)
        folder = Path(known.recipe.model.path).expanduser() if known.is_adapter else known.folder
        if found is not None or not (folder / "config.json").is_file():
            return found
        return gguf_names.refusal(config_of(str(folder), known.recipe.model))

    def unread(self, prompter: Prompter) -> str | None:
        return gguf_tokens.refusal(prompter.tokenizer)

    def refusal(self, subject: Subject) -> str | None:
        found = gguf_names.refusal(subject.base.config) or gguf_tokens.refusal(subject.trained.tokenizer)
        return found or super().refusal(subject)

    def storage(self, subject: Subject) -> str:
        return subject.storage or self.storages[0]


class Gguf(_LlamaCpp):
    """`model.gguf`, and a `Modelfile` for Ollama. Matrices in the storage, vectors in float32; in `q4_0` embeddings
    have 8 bits."""

    name: ClassVar[str] = "gguf"
    holds: ClassVar[str] = MERGED
    storages: ClassVar[tuple[str, ...]] = ("f16", "f32", "bf16", "q8_0", "q4_0")

    def write(self, subject: Subject, folder: Path) -> None:
        _write_model(subject, subject.merged, folder / MODEL, self.storage(subject))
        (folder / "Modelfile").write_text(modelfile(subject.trained, f"./{MODEL}"), encoding="utf-8")

    def task(self, subject: Subject, folder: Path) -> dict[str, Any]:
        return {"model": folder / MODEL}


class GgufLora(_LlamaCpp):
    """`adapter.gguf`, which llama.cpp puts on a GGUF of the base (`--lora`), and a `Modelfile` for Ollama."""

    name: ClassVar[str] = "gguf-lora"
    holds: ClassVar[str] = LOW_RANK
    storages: ClassVar[tuple[str, ...]] = ("f32", "f16")

    def refusal(self, subject: Subject) -> str | None:
        found = super().refusal(subject)
        if found is not None:
            return found
        names = Names(subject.base.config)
        odd = next((path for path in subject.factors if names.of(path) is None), None)
        return self.shared_head(subject) if odd is None else f"llama.cpp has no layer for {odd}"

    def write(self, subject: Subject, folder: Path) -> None:
        import gguf

        names, (_, alpha, tensors) = Names(subject.base.config), plain_lora(subject.factors)
        writer = gguf.GGUFWriter(None, names.architecture.name)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        _write(writer, folder / ADAPTER, _factors(names, tensors), self.storage(subject))
        (folder / "Modelfile").write_text(modelfile(subject.trained, None, f"./{ADAPTER}"), encoding="utf-8")

    def check(self, subject: Subject, folder: Path) -> Comparison:
        """On a GGUF of the base in float32, which is made for that and not kept."""
        if missing := subject.environment.lacks(self.module, self.program):
            return Comparison(self.target, missing=missing)
        with tempfile.TemporaryDirectory(prefix="afina-base-") as work:
            self._below = Path(work) / MODEL
            _ = subject.said
            _write_model(subject, subject.base, self._below, "f32")
            return super().check(subject, folder)

    def task(self, subject: Subject, folder: Path) -> dict[str, Any]:
        return {"model": self._below, "adapter": folder / ADAPTER}


def _factors(names: Names, tensors: dict[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
    for key, tensor in tensors.items():
        path, factor, _ = key.removeprefix("base_model.model.").rsplit(".", 2)
        known = f"{names.of(path)}.weight"
        yield (f"{known}.lora_a", tensor) if factor == "lora_A" else (f"{known}.lora_b", names.rows(path, tensor))


def _write_model(subject: Subject, model: Any, file: Path, storage: str) -> None:
    import gguf

    trained, names = subject.trained, Names(model.config)
    writer = gguf.GGUFWriter(None, names.architecture.name)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(trained.folder.absolute().name)
    writer.add_file_type(int(gguf.LlamaFileType[_FILE_TYPES[storage]]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    gguf_names.describe(writer, model.config)
    ends = end_tokens(model, trained.prompter)
    gguf_tokens.write_tokens(writer, trained.tokenizer, model.config.vocab_size, ends)
    _write(writer, file, _tensors(model, names), storage)


def _tensors(model: Any, names: Names) -> Iterable[tuple[str, Tensor]]:
    yield from gguf_names.parameters(model, names)
    factors = names.frequencies(model)
    if factors is not None:
        yield "rope_freqs.weight", factors


def _write(writer: Any, file: Path, tensors: Iterable[tuple[str, Tensor]], storage: str) -> None:
    """Tensors one after the other: sizes first, then each is made and written."""
    listed = list(tensors)
    kinds = {}
    for name, tensor in listed:
        own = "q8_0" if storage == "q4_0" and name.startswith(("token_embd", "output.")) else storage
        kinds[name] = own
        made, kind = stored(tensor, own)
        writer.add_tensor_info(name, made.shape, made.dtype, made.nbytes, raw_dtype=kind)
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in listed:
        writer.write_tensor_data(stored(tensor, kinds[name])[0])
    writer.close()
