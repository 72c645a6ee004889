"""Adapters of which this process has a part: what all have to save together, and what cannot be saved at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from ...errors import CheckpointError
from ..hosts.host import Host
from ..hosts.walk import outside_adapters
from ..layers.partitioned import is_placeholder
from ..layers.sharded import digest_of, is_sharded, is_spread
from . import embeddings
from .names import Piece, layout, pieces, prompt_piece, shared_piece


def needs_all(model: nn.Module, name: str, save_embedding_layers: bool | str = "auto") -> bool:
    """Whether an adapter can only be saved by all processes together, each of which has a part of it."""
    root, container, _ = layout(model)
    found = [*pieces(root, name), shared_piece(container, name), prompt_piece(container, name)]
    held = [module for piece in found if piece is not None for module in _holders(piece)]
    if embeddings.wanted(root, save_embedding_layers):
        held += embeddings.layers(root)
    if any(m._parameters and (is_spread(m) or any(map(is_sharded, m._parameters.values()))) for m in held):
        return True
    # What the file says of the base is read from all of it, if that was not done before.
    parameters = ((m, n, p) for _, m in outside_adapters(root) for n, p in m._parameters.items())
    return any(is_placeholder(p) and digest_of(m, n) is None for m, n, p in parameters)


def _holders(piece: Piece) -> Iterator[nn.Module]:
    """The modules that hold a piece's tensors."""
    if piece.bias_of is None:
        return piece.owner.modules()
    assert isinstance(piece.owner, Host)
    return iter([piece.owner.biases] if isinstance(piece.owner.biases, nn.Module) else [])


def refuse_parts(tensors: Mapping[str, Tensor]) -> None:
    """Refuse to write what is not whole.

    Raises:
        CheckpointError: names the first tensor that is not.
    """
    part = next((n for n, t in tensors.items() if is_sharded(t)), None)
    if part is not None:
        raise CheckpointError("this process has a part of the tensor", where=f"state_dict: {part}",
                              fix="gather the state (full_state_dict=True), or leave it out and call in every process",
                              )  # fmt: skip
