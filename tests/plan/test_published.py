from __future__ import annotations

import pytest

from afina.errors import RecipeError
from afina.plan.published import DEVICES, published


def test_a_device_is_known_by_its_name_with_or_without_its_memory():
    assert published("H100 80GB") == published("nvidia h100") == ("H100 80GB", DEVICES["H100 80GB"])
    assert published("rtx4090")[0] == "RTX 4090 24GB"


def test_names_of_several_or_of_none_are_refused_with_what_there_is():
    with pytest.raises(RecipeError, match="several") as several:
        published("A100")
    assert "A100 40GB or A100 80GB" in str(several.value)
    with pytest.raises(RecipeError, match="no figures") as none:
        published("H1OO 80GB")
    assert "did you mean 'H100 80GB'" in str(none.value)
    with pytest.raises(RecipeError):
        published("")


def test_published_speeds_are_marked_and_slower_in_float32():
    for figures in DEVICES.values():
        narrow, wide = figures.speed("bfloat16"), figures.speed("float32")
        assert not narrow.measured
        assert wide.flops[-1] < narrow.flops[-1]
        assert figures.free < figures.memory * 2**30
