"""Recipes: how the models were fine-tuned for each task, as data. `paligemma recipes` lists them.

recipe.py   Recipe, Setting; the training options and the command that follow from them
catalog.py  all recipes, and finding one by its name

Every other file is one recipe, to be read and to be copied.
"""
