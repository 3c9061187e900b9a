"""Recipes: every published system is one file, found by its name.

A recipe file lies at ``recipes/<family>/<name with underscores>.py`` and defines one function decorated with
:func:`bitwright.recipes.base.recipe`. Nothing else has to be edited to add one.
"""

from bitwright.recipes.base import Check, Claim, Data, Recipe, RecipeInfo, recipe
from bitwright.recipes.registry import all_recipes, load_recipe, recipe_info

__all__ = [
    "Check",
    "Claim",
    "Data",
    "Recipe",
    "RecipeInfo",
    "all_recipes",
    "load_recipe",
    "recipe",
    "recipe_info",
]
