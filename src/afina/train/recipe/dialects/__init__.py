"""Recipes of other tools, one table each: what their keys are called here, and what has no counterpart."""

from .draft import Imported
from .imported import DIALECTS, import_recipe, reason, written

__all__ = ["DIALECTS", "Imported", "import_recipe", "reason", "written"]
