from __future__ import annotations

import pytest

from afina.errors import AfinaError
from afina.train.recipe.settings import load_recipe

from .. import tiny
from .alignment.test_preference import with_parts


def labels(parts):
    return [(item["input_ids"], item["labels"]) for item in parts["data"].train.items]


@pytest.mark.parametrize("on", [True, False])
def test_prompts_are_learnt_where_the_recipe_wants_it(on, models, child, tmp_path):
    file = tiny.write_task(tmp_path, "causal_lm", models, training__loss_on_prompt=on, training__max_steps=1)
    _, found = child(with_parts, load_recipe(str(file)), labels)
    for ids, targets in found:
        learnt = [t for t in targets if t != -100]
        assert learnt == ids[1:] if on else len(learnt) < len(ids) - 1


def test_tasks_without_prompts_in_their_loss_refuse_it(models, child, tmp_path):
    file = tiny.write_task(tmp_path, "preference", models, training__loss_on_prompt=True)
    with pytest.raises(AfinaError, match="no loss on prompts"):
        child(with_parts, load_recipe(str(file)), len)
