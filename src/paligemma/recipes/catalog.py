"""All recipes, in the order of the papers; finding one by its name."""

from __future__ import annotations

import difflib

from paligemma.errors import OptionError
from paligemma.recipes import (
    activitynet_cap,
    activitynet_qa,
    ai2d,
    aokvqa_da,
    aokvqa_mc,
    chartqa,
    coco35l,
    coco_detection,
    cococap,
    docci,
    doclaynet_detection,
    docvqa,
    forkme,
    forkme_small,
    gqa,
    infovqa,
    molecules,
    msrvtt_cap,
    msrvtt_qa,
    msvd_qa,
    music,
    nlvr2,
    ocrvqa,
    okvqa,
    radiography,
    refcoco_seg,
    rsvqa_hr,
    rsvqa_lr,
    scicap,
    science_qa,
    screen2words,
    stage1,
    stage2a,
    stage2b,
    stvqa,
    tables,
    tallyqa,
    text_detection,
    textcaps,
    textvqa,
    vatex,
    vizwizvqa,
    vqav2,
    vsr,
    widgetcap,
)
from paligemma.recipes.recipe import Recipe

RECIPES: tuple[Recipe, ...] = (
    cococap.RECIPE,
    coco35l.RECIPE,
    screen2words.RECIPE,
    textcaps.RECIPE,
    scicap.RECIPE,
    widgetcap.RECIPE,
    vqav2.RECIPE,
    okvqa.RECIPE,
    aokvqa_mc.RECIPE,
    aokvqa_da.RECIPE,
    gqa.RECIPE,
    nlvr2.RECIPE,
    ai2d.RECIPE,
    science_qa.RECIPE,
    rsvqa_lr.RECIPE,
    rsvqa_hr.RECIPE,
    chartqa.RECIPE,
    vizwizvqa.RECIPE,
    tallyqa.RECIPE,
    ocrvqa.RECIPE,
    textvqa.RECIPE,
    docvqa.RECIPE,
    infovqa.RECIPE,
    stvqa.RECIPE,
    refcoco_seg.RECIPE,
    activitynet_qa.RECIPE,
    activitynet_cap.RECIPE,
    msrvtt_qa.RECIPE,
    msrvtt_cap.RECIPE,
    msvd_qa.RECIPE,
    vatex.RECIPE,
    text_detection.RECIPE,
    tables.RECIPE,
    molecules.RECIPE,
    music.RECIPE,
    docci.RECIPE,
    vsr.RECIPE,
    radiography.RECIPE,
    coco_detection.RECIPE,
    doclaynet_detection.RECIPE,
    stage1.RECIPE,
    stage2a.RECIPE,
    stage2b.RECIPE,
    forkme.RECIPE,
    forkme_small.RECIPE,
)


def find_recipe(name: str) -> Recipe:
    """Raises OptionError for an unknown name, with those most alike.

    >>> find_recipe("aokvqa-mc").text_length
    128
    """
    names = [recipe.name for recipe in RECIPES]
    wanted = name.strip().lower().replace("_", "-")
    if wanted not in names:
        alike = difflib.get_close_matches(wanted, names, n=3) or names
        raise OptionError(f"There is no recipe {name!r}. Did you mean: {', '.join(alike)}?")
    return RECIPES[names.index(wanted)]
