"""GGUF models, converted once to a transformers folder in the cache (loading GGUF takes seconds, safetensors none)."""

from __future__ import annotations

import json
from pathlib import Path

from ...cache import make_once, sha256
from ...core.files.package_folder import converted_at
from ...errors import CheckpointError
from ..report.events import Reporter


def converted(file: Path, reporter: Reporter) -> Path:
    """The folder with `file` as float32 safetensors, its config and its tokenizer.

    Raises:
        CheckpointError: the file is not GGUF.
    """
    with file.open("rb") as head:
        magic = head.read(4)
    if magic != b"GGUF":
        raise CheckpointError("not a GGUF file", where=file, got=magic, expected=b"GGUF")
    digest = sha256(file)
    folder = converted_at(file, digest)
    if folder.is_dir():
        return folder
    reporter.note(f"converting {file.name} to safetensors (once, about 20 s for a small model)")
    return make_once(folder, lambda work: _convert(file, digest, work))


def _convert(file: Path, digest: str, work: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # The weights are plain float32 by now, yet the model is still marked as quantised; so marked, it can be neither
    # saved nor trained.
    for mark in ("hf_quantizer", "is_quantized", "quantization_method"):
        if mark in vars(model):
            delattr(model, mark)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(work)
    tokenizer.save_pretrained(work)
    weights = {path.name: sha256(path) for path in sorted(work.glob("*.safetensors"))}
    origin = {"source": file.name, "source_sha256": digest, "weights_sha256": weights}
    (work / "origin.json").write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
