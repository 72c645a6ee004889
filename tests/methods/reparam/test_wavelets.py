"""Wavelet filters by their defining properties, and WaveFT with each of them against the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import afina
from afina.errors import ConfigError
from afina.methods.reparam.wavelets import FAMILIES, low_pass

REFERENCE = pytest.importorskip("peft", reason="the reference is the oracle")
X = torch.randn(5, 17, generator=torch.Generator().manual_seed(2))
FAULTY = ("coif4", "coif5")
"""Whose coefficients in the reference are not orthogonal, and of coif5 too many."""


def base() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(17, 24), nn.Tanh(), nn.Linear(24, 9)).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_filters_are_orthonormal_with_their_vanishing_moments(name: str) -> None:
    h, number = low_pass(name), int(name.lstrip("dbsymcoif"))
    length, moments = (6 * number, 2 * number) if name.startswith("coif") else (2 * number, number)
    assert len(h) == length
    for shift in range(length // 2):
        product = (h[2 * shift :] * h[: length - 2 * shift]).sum()
        assert product.item() == pytest.approx(float(shift == 0), abs=1e-11)
    n = torch.arange(length, dtype=torch.float64) / length
    wavelet = h.flip(0) * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(length // 2)
    for k in range(moments):
        assert (wavelet * n**k).sum().abs() < 1e-10
    if name.startswith("coif"):
        centre = (h * n).sum() / h.sum()
        assert all((h * (n - centre) ** k).sum().abs() < 1e-10 for k in range(1, 2 * number))


def test_symlets_are_more_symmetric_than_filters_of_minimal_phase() -> None:
    """By how far the phase is from a straight line."""
    for number in range(4, 11):
        uneven = []
        for family in ("db", "sym"):
            h = low_pass(f"{family}{number}")
            centre = (h.square() * torch.arange(len(h))).sum()
            uneven.append((h.square() * (torch.arange(len(h)) - centre).pow(3)).sum().abs())
        assert uneven[1] < uneven[0]


@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in FAULTY])
def test_files_of_every_wavelet_are_exchanged_with_the_reference(name: str, tmp_path: Path) -> None:
    def adapted(library: Any) -> Any:
        config = library.WaveFTConfig(target_modules=["0", "2"], n_frequency=60, scaling=1.0, wavelet_family=name)
        model = library.get_peft_model(base(), config).eval()
        torch.manual_seed(1)
        for parameter in (p for p in model.parameters() if p.requires_grad):
            nn.init.normal_(parameter)
        return model

    with torch.no_grad():
        for writer, reader in ((afina, REFERENCE), (REFERENCE, afina)):
            written = adapted(writer)
            written.save_pretrained(tmp_path)
            expected = written(X)
            assert (expected - base()(X)).abs().max() > 0.1
            assert (reader.PeftModel.from_pretrained(base(), tmp_path).eval()(X) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["db11", "sym1", "coif6", "haar", ""])
def test_wavelets_that_are_not_there_are_named(name: str) -> None:
    with pytest.raises(ConfigError, match=r"db1, .*coif5"):
        afina.WaveFTConfig(wavelet_family=name)


@pytest.mark.parametrize("name", FAULTY)
def test_wavelets_that_are_faulty_in_the_reference_are_whole_here(name: str) -> None:
    """A coefficient is a direction of length one in ΔW, but for what the margin cuts off."""
    config = afina.WaveFTConfig(target_modules=["0"], n_frequency=40, scaling=1.0, wavelet_family=name)
    model = afina.get_peft_model(nn.Sequential(nn.Linear(128, 128)), config)
    adapter = next(m for m in model.modules() if "waveft_spectrum" in m._parameters)
    lengths = []
    for i in range(40):
        with torch.no_grad():
            adapter.waveft_spectrum.zero_()
            adapter.waveft_spectrum[i] = 1
            lengths.append(adapter.delta(torch.zeros(128, 128)).norm())
    assert (torch.stack(lengths) - 1).abs().median() < 1e-5
