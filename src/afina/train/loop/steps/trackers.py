"""What else may watch a run: transformers' trackers, and the packages that they need."""

from __future__ import annotations

from importlib.util import find_spec

from ....errors import RecipeError, did_you_mean
from ...recipe.sections import Recipe


def check_trackers(recipe: Recipe) -> None:
    """Before anything is loaded.

    Raises:
        RecipeError: no such tracker, or its package is missing.
    """
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    if find_spec("tensorboard") is None and find_spec("tensorboardX") is None:
        raise RecipeError("the package tensorboard, which every run writes to, is missing",
                          fix="pip install 'afina[train]'")  # fmt: skip
    known, available = sorted(INTEGRATION_TO_CALLBACK), get_available_reporting_integrations()
    for name in recipe.training.report_to:
        if name not in known:
            raise RecipeError("no such tracker", where="training.report_to", got=repr(name)[:60],
                              expected=", ".join(known), fix=did_you_mean(name, known))  # fmt: skip
        # Trackers that transformers does not list as available (flyte) say themselves what they need.
        if name in _LISTED and name not in available:
            raise RecipeError("the tracker's package is missing", where="training.report_to", got=name,
                              fix=f"pip install {name}, or leave it out")  # fmt: skip


_LISTED = frozenset({"azure_ml", "comet_ml", "dagshub", "dvclive", "mlflow", "neptune", "tensorboard", "wandb",
                     "codecarbon", "clearml", "swanlab", "trackio"})  # fmt: skip
