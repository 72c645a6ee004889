from __future__ import annotations

import json

import pytest

from ..train import tiny
from ..train.child import command


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, model_folder):
    return tiny.write_recipe(tmp_path_factory.mktemp("plan"), model_folder)


@pytest.mark.whole("the figures behind it are tested where they are made")
def test_a_plan_tells_parts_and_what_fits_on_a_device_that_is_not_here(recipe, child):
    code, out, err = child(command, "plan", str(recipe), "--device", "h100", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["device"], found["published"], found["fits"]) == ("H100 80GB", True, True)
    assert found["bytes"] == sum(found["parts"].values())
    assert set(found["parts"]) >= {"weights", "adapters", "optimizer", "activations", "allocator"}
    assert found["parts"]["adapters"] == 4 * 8192
    assert found["steps"] == 6
    assert found["seconds"] > 0
    assert found["largest"]["tokens"] == 512  # which is all that the model has positions for
    assert found["largest"]["parameters"] > 1e9
    assert any("published figures, nothing measured there" in line for line in found["verdict"])


_BOTH = ("--device", "h100", "training.offload=activations", "training.gradient_checkpointing=true")


@pytest.mark.parametrize(("words", "said"), [
    ((), "no recipe"), (("--device", "X9"), "no figures of this device"),
    (_BOTH, "activations that are computed again need not be kept elsewhere"),
])  # fmt: skip
def test_mistakes_are_told_in_four_lines(recipe, child, words, said):
    source = (str(recipe),) if words else ()
    code, _, err = child(command, "plan", *source, *words)
    lines = [line for line in err.splitlines() if line]
    assert code == 2
    assert said in lines[0]
    assert len(lines) <= 4
