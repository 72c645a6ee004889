"""The merged model as safetensors, shard by shard: the base's own files with the adapted tensors changed in them.

The base is read as its files are mapped into memory, one layer at a time is merged and given back, and one shard's
tensors are held until it is written. What no adapter changed is copied bit for bit, under its own name and dtype.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.hosts.host import Host, hosts
from ...core.inject.places import plain_path
from ...errors import CheckpointError, MergeError
from ...train.answers.generate import end_tokens
from ..contract import MERGED, Comparison, Format, Subject
from ..merged import compare, encoded, logits, reloaded
from .in_four_bits import Rounding

INDEX = "model.safetensors.index.json"
_BESIDE = ("config.json", "generation_config.json")


class Shards(Format):
    """The files that the base has, in the dtypes that they have there (or linear layers in NF4), and the tokenizer."""

    name: ClassVar[str] = "safetensors"
    target: ClassVar[str] = "transformers"
    holds: ClassVar[str] = MERGED
    storages: ClassVar[tuple[str, ...]] = ("own", "nf4")
    writes: ClassVar[bool] = False
    module: ClassVar[str] = "transformers"
    program: ClassVar[str] = ""
    _rounding: Rounding | None = None

    def refusal(self, subject: Subject) -> str | None:
        found = super().refusal(subject)
        if found is None and not _files(subject):
            found = "its base has no safetensors files of its own (afina merge writes the model from memory)"
        return found

    def write(self, subject: Subject, folder: Path) -> None:
        """Write shard by shard.

        Raises:
            MergeError: the base's files name its tensors otherwise than the model does.
        """
        from safetensors import safe_open
        from safetensors.torch import save_file

        if subject.outputs is None:
            subject.outputs = logits(subject.trained.model, encoded(subject.trained))
        changed = _changed(subject)
        self._rounding = Rounding.of(subject.base) if subject.storage == "nf4" else None
        places: dict[str, str] = {}
        left, size = set(changed), 0
        for file in _files(subject):
            with safe_open(file, "pt") as shard:
                names, said = list(shard.keys()), shard.metadata()
                tensors: dict[str, Tensor] = {}
                for name in names:
                    tensors |= self._stored(name, shard.get_tensor(name), changed, subject)
                save_file(tensors, folder / file.name, said or {"format": "pt"})
            left -= set(names)
            places |= dict.fromkeys(tensors, file.name)
            size += sum(tensor.nbytes for tensor in tensors.values())
        if left:
            raise MergeError("the base's files name their tensors otherwise than the model, or tie what the adapter "
                             "changes", where=min(left), fix="afina merge writes the model from memory")  # fmt: skip
        if len(set(places.values())) > 1:
            index = {"metadata": {"total_size": size}, "weight_map": places}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        self._beside(subject, folder)

    def _stored(
        self, name: str, own: Tensor, changed: Mapping[str, tuple[Host, str]], subject: Subject
    ) -> dict[str, Tensor]:
        """A tensor of the base's file as it is written: merged where the adapter changes it, rounded if asked for."""
        made = _merged(*changed[name], subject.name, name, own) if name in changed else own
        if self._rounding is None or name not in self._rounding.weights:
            return {name: made}
        return self._rounding.stored(name, made, own if name in changed else None)

    def _beside(self, subject: Subject, folder: Path) -> None:
        base = _files(subject)[0].parent
        for name in _BESIDE:
            if (base / name).is_file():
                shutil.copy(base / name, folder)
        if self._rounding is not None:
            file = folder / "config.json"
            values = json.loads(file.read_text(encoding="utf-8"))
            values["quantization_config"] = self._rounding.settings(subject.base.dtype)
            file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        subject.trained.prompter.keep(folder)
        settings = folder / "generation_config.json"
        if subject.trained.task.streams and settings.is_file():
            ends = end_tokens(subject.trained.model, subject.trained.prompter)
            values = {**json.loads(settings.read_text(encoding="utf-8")), "eos_token_id": ends}
            settings.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    def check(self, subject: Subject, folder: Path) -> Comparison:
        import transformers

        assert subject.outputs is not None
        found = compare(subject.outputs, logits(reloaded(folder, subject.base), encoded(subject.trained)))
        if self._rounding is not None:  # what 4 bits do to a model is told, not judged
            return Comparison(self.target, transformers.__version__, f"outputs for {found.probes} texts",
                              found.agreement, found.difference, note=self._rounding.told)  # fmt: skip
        return Comparison(self.target, transformers.__version__, f"outputs for {found.probes} texts", found.agreement,
                          found.difference, None, subject.tolerance)  # fmt: skip


def _files(subject: Subject) -> list[Path]:
    folder = Path(subject.base.name_or_path)
    return sorted(folder.glob("*.safetensors")) if folder.is_dir() else _fetched(str(folder))


def _fetched(name: str) -> list[Path]:
    """The files of a base that the hub's cache has."""
    from transformers.utils import cached_file

    try:
        config = cached_file(name, "config.json", local_files_only=True)
    except OSError:
        return []
    return sorted(Path(config).parent.glob("*.safetensors")) if config else []


def _changed(subject: Subject) -> dict[str, tuple[Host, str]]:
    """Name in the base's files -> the host that changes that tensor, and its name below the host.

    Raises:
        MergeError: one of two tied embeddings would be changed.
    """
    out: dict[str, tuple[Host, str]] = {}
    tied = getattr(subject.base.config, "tie_word_embeddings", False)
    ends = [subject.base.get_input_embeddings(), subject.base.get_output_embeddings()] if tied else []
    for path, host in hosts(subject.base):  # a model that was trained as a whole has none
        if subject.name not in host.names():
            continue
        if any(host is end or getattr(host, "base_layer", None) is end for end in ends):
            raise MergeError("the base's file has one tensor for both embeddings, and one of them is adapted",
                             where=plain_path(path), fix="afina merge writes the model from memory")  # fmt: skip
        name = plain_path(path).replace(".original_module", "")
        out |= {f"{name}.{key}": (host, key) for key in _own(host)}
    return out


def _own(host: Host) -> Iterator[str]:
    if host.parameter is not None:
        yield host.parameter.rpartition(".")[2]
    else:
        yield from (name for name, _ in host.get_base_layer().named_parameters())


@torch.no_grad()
def _merged(host: Host, below: str, adapter: str, name: str, own: Tensor) -> Tensor:
    """A tensor of a host's layer with the adapter in it, in the dtype of the file."""
    host.merge([adapter])
    try:
        if host.saved and host.base.bias is not None and host.saved.get(host.base.bias_name, own) is None:
            raise MergeError("the adapter gives a bias to a layer that has none, for which the base's files have no "
                             "place", where=name, fix="afina merge writes the model from memory")  # fmt: skip
        found: Any = host.result()  # of trained copies the copy
        while isinstance(found, Host):
            found = found.base_layer
        return _as(found.get_parameter(below), own, name)
    finally:
        host.unmerge()


def _as(found: Tensor, own: Tensor, name: str) -> Tensor:
    if found.shape != own.shape:
        raise CheckpointError("the base's file has another shape than the model", where=name, got=tuple(own.shape),
                              expected=tuple(found.shape))  # fmt: skip
    return found.detach().to(own.dtype).contiguous()
