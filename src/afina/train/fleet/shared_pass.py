"""The body of a base with the adapters of several runs: one pass for the rows of all, each through its own run's."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...core.hosts.batch_rows import BASE, Rows
from ...core.hosts.calls import Scope, entered, node_number
from ...core.hosts.host import Host, hosts
from ...core.inject.slots import Slot
from ...errors import ConfigError

BY_TOKEN = ("attention_mask", "position_ids", "token_type_ids")
"""What a body takes for every token beside the embeddings, [rows, tokens]."""


class SharedPass:
    """A base's body, on which the very adapters of several runs lie side by side.

    Args:
        body: with the base's weights, and modules that nobody else uses.
    """

    def __init__(self, body: nn.Module) -> None:
        self.body: Any = body
        self.scope = Scope()
        self.body.train()
        self.takes = tuple(key for key in BY_TOKEN if key in inspect.signature(self.body.forward).parameters)
        """What it is always given for every token, so that rows are treated alike whoever is beside them."""

    def join(self, name: str, body: nn.Module) -> None:
        """Put a run's adapters here too, under its name.

        Raises:
            ConfigError: they lie on it in a way that has no place here.
        """
        if any(module._forward_hooks or module._forward_pre_hooks for module in body.modules()):
            raise ConfigError("its method listens to modules, which are others here", where=name)
        for path, host in hosts(body):
            if any(host.base_layer.children()) or host.merged or len(host.names()) > 1:
                raise ConfigError("its method adapts whole parts, in which others adapt layers", where=path)
            mine = self._host(path, host)
            for own in host.names():
                adapter = host.adapter(own)
                if adapter is not None:
                    mine.add(name, adapter)
                if own in host.biases:
                    mine.add_bias(name, host.biases[own])
        here = {id(p) for p in self.body.parameters()} | {id(p) for p in _embedding(body).parameters()}
        if apart := [n for n, p in body.named_parameters() if p.requires_grad and id(p) not in here]:
            raise ConfigError("its method trains what lies on no layer", where=apart[0])

    def leave(self, name: str) -> None:
        """Take a run's adapters away; the run keeps them."""
        for _, host in hosts(self.body):
            host.remove(name)

    def _host(self, path: str, like: Host) -> Host:
        parent, _, leaf = path.rpartition(".")
        there = self.body.get_submodule(path)
        if isinstance(there, Host):
            return there
        made = type(like)(there, parameter=like.parameter, scope=self.scope)
        Slot(path, self.body.get_submodule(parent), leaf, there).put(made)
        return made

    def __call__(self, names: Sequence[str], given: Sequence[Mapping[str, Any]]) -> list[Any]:
        """The outputs of the body for the batches of several runs.

        Args:
            given: of each, `inputs_embeds` [rows, tokens, width], `BY_TOKEN` where it has them, and plain values that
                are the same for all.
        """
        longest = max(one["inputs_embeds"].shape[1] for one in given)
        rows = [name for name, one in zip(names, given, strict=True) for _ in range(len(one["inputs_embeds"]))]
        keys = ("inputs_embeds", *self.takes)
        inputs = {key: torch.cat([_padded(one, key, longest) for one in given]) for key in keys}
        plain = {key: value for key, value in given[0].items() if key not in inputs}
        start = node_number()
        with entered(self.scope, Rows(tuple(rows))) as call:
            out = self.body(**inputs, **plain, use_cache=False)
        if torch.is_grad_enabled():
            call.keep_for_backward(out, start)
        return list(_parted(out, [one["inputs_embeds"].shape[:2] for one in given], longest))

    def among_others(self, name: str, given: Mapping[str, Any]) -> Any:
        """The output for one run's batch, behind rows without adapters that are longer, without gradients."""
        embeds: Tensor = given["inputs_embeds"]
        other = {key: value for key, value in given.items() if not isinstance(value, Tensor)}
        longer = torch.cat([embeds, embeds.flip(1)[:, : max(1, embeds.shape[1] // 2)]], dim=1)
        with torch.no_grad():
            return self([BASE, name], [{**other, "inputs_embeds": longer}, given])[1]


def _embedding(body: Any) -> nn.Module:
    """The table of the tokens, which every run reads for itself."""
    out: nn.Module = body.get_input_embeddings()
    return out


def _padded(one: Mapping[str, Any], key: str, longest: int) -> Tensor:
    """What is given for every token of one batch, padded on the right; a mask of ones where it has none."""
    embeds: Tensor = one["inputs_embeds"]
    value = one.get(key)
    if value is None:
        value = torch.zeros(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        if key == "attention_mask":
            value = value + 1
        elif key == "position_ids":
            value = value + torch.arange(embeds.shape[1], device=embeds.device)
    value = value.expand(len(embeds), *value.shape[1:])
    pad = (0, 0) * (value.dim() - 2) + (0, longest - value.shape[1])
    return nn.functional.pad(value, pad)


def _parted(out: Any, shapes: Sequence[tuple[int, int]], longest: int) -> Any:
    begin = 0
    for rows, tokens in shapes:
        parts = {}
        for key, value in out.items():
            if not isinstance(value, Tensor):
                raise ConfigError("an output does not divide into the rows of several runs", where=key,
                                  got=type(value).__name__)  # fmt: skip
            part = value[begin : begin + rows]
            parts[key] = part[:, :tokens] if value.dim() > 2 and value.shape[1] == longest else part
        begin += rows
        yield type(out)(**parts)
