"""FRoD's shared basis, and files of the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import afina
from afina.methods.reparam.frod import category
from afina.methods.reparam.joint_basis import joint_basis

REFERENCE = pytest.importorskip("peft", reason="the reference is the oracle")
X = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))


class Layers(nn.Module):
    """Three layers of two kinds, so that bases are shared."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        block = lambda: nn.ModuleDict({"up": nn.Linear(8, 12), "down": nn.Linear(12, 8)})  # noqa: E731
        self.layers = nn.ModuleList([nn.ModuleDict({"mlp": block()}) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer["mlp"]["down"](torch.tanh(layer["mlp"]["up"](x)))
        return x


def model(library: Any) -> Any:
    config = library.FrodConfig(sparse_rate=0.2, progressbar=False, target_modules=["up", "down"])
    adapted = library.get_peft_model(Layers().eval(), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return adapted.eval()


def test_files_of_the_reference_give_its_outputs(tmp_path: Path) -> None:
    theirs = model(REFERENCE)
    theirs.save_pretrained(tmp_path)
    mine = afina.PeftModel.from_pretrained(Layers().eval(), tmp_path)
    assert torch.allclose(mine(X), theirs(X), atol=1e-5)
    assert not torch.allclose(mine(X), Layers()(X), atol=1e-2)


def test_files_have_the_references_names_and_shapes(tmp_path: Path) -> None:
    shapes = []
    for library in (afina, REFERENCE):
        model(library).save_pretrained(tmp_path / library.__name__)
        tensors = load_file(tmp_path / library.__name__ / "adapter_model.safetensors")
        shapes.append({k: (tuple(t.shape), t.dtype) for k, t in tensors.items()})
    assert shapes[0] == shapes[1]


def test_the_basis_diagonalises_all_quotients() -> None:
    # Matrices that have a common basis by construction: U_i diag(l_i) V^T with orthonormal U_i.
    generator = torch.Generator().manual_seed(3)
    V = nn.functional.normalize(torch.randn(6, 6, generator=generator, dtype=torch.float64), dim=0)
    weights = []
    for _ in range(3):
        U = torch.linalg.qr(torch.randn(9, 6, generator=generator, dtype=torch.float64)).Q
        weights.append(U @ torch.diag(1 + torch.rand(6, generator=generator, dtype=torch.float64)) @ V.T)
    found = joint_basis(weights, 1e-9)
    # Each found direction is one of the true ones, up to its sign.
    cosines = (found.T @ V).abs()
    assert torch.allclose(cosines.max(dim=1).values, torch.ones(6, dtype=torch.float64), atol=1e-5)
    assert sorted(cosines.argmax(dim=1).tolist()) == list(range(6))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("model.layers.3.self_attn.q_proj", "self_attn_q_proj"), ("0", "0"), ("layers.1.up", "up"),
     ("bert.encoder.layer.0.attention.self.query", "self_query")],
)  # fmt: skip
def test_categories_are_the_ends_of_paths(name: str, expected: str) -> None:
    assert category(name) == expected
