from __future__ import annotations

import pytest

from .. import tiny


@pytest.fixture(scope="session")
def models(model_folder, tmp_path_factory):
    """Tiny models by family."""
    return {
        "llama": model_folder,
        "t5": tiny.write_t5(tmp_path_factory.mktemp("t5")),
        "encoder": tiny.write_encoder(tmp_path_factory.mktemp("encoder")),
    }
