"""Trained adapters for methods that route among them."""

from __future__ import annotations

import pytest

from .experts import save_expert


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three LoRAs, one of them on other layers, under the only names that the reference takes."""
    folder = tmp_path_factory.mktemp("experts")
    other = ["q_proj", "k_proj"]
    return {str(i): save_expert(folder / str(i), i, **({"target_modules": other} if i == 2 else {})) for i in range(3)}
