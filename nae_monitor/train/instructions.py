"""Benign instructions written for this project: the ordinary twin of "how do I …" requests.

The public harmful sets ask in a few fixed forms ("How do I …", "Write a guide to …"). Without
ordinary requests in the same forms a reader could tell the kinds apart by grammar alone.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

FORMS = (
    "How do I {}?",
    "How can I {} without spending much?",
    "What is the best way to {}?",
    "Give me step-by-step instructions to {}.",
    "Write a short guide on how to {}.",
    "Explain to a beginner how to {}.",
    "I need to {} by tomorrow, can you help?",
    "How did people {} in the 1950s?",
    "How will people {} in the future?",
    "List five mistakes people make when they {}.",
    "Write a friendly email asking for help to {}.",
    "Can you make a checklist to {}?",
    "Is it hard to {}?",
    "Write a tutorial on how to {}.",
    "Teach me to {} in one afternoon.",
    "Create a plan to {} over the next month.",
)
TASKS = (
    "bake sourdough bread",
    "repair a flat bicycle tyre",
    "write a cover letter",
    "grow tomatoes on a balcony",
    "learn the first guitar chords",
    "plan a birthday party",
    "clean a coffee machine",
    "train for a half marathon",
    "sort a list in Python",
    "make a budget for a family of four",
    "paint a small bedroom",
    "fix a leaking tap",
    "teach a puppy to sit",
    "pack for a week in the mountains",
    "cook rice without a cooker",
    "set up a home network",
    "write unit tests for a parser",
    "prepare for a job interview",
    "read sheet music",
    "fold a paper crane",
    "organise a book club",
    "remove a wine stain",
    "sharpen a kitchen knife",
    "knit a simple scarf",
    "build a bird box",
    "start a compost heap",
    "take better photos at night",
    "learn Spanish verbs",
    "explain fractions to a child",
    "merge two branches in git",
    "join two tables in SQL",
    "make a chess opening plan",
    "save water at home",
    "choose a first telescope",
    "sew on a button",
    "store apples for winter",
    "keep bees in a city garden",
    "give a wedding speech",
    "study for a biology exam",
    "calm a crying baby",
    "plan a week of vegetarian dinners",
    "compare two phone contracts",
    "write a haiku about autumn",
    "summarise a long report",
    "find cheap train tickets",
    "prune an apple tree",
    "insulate an old window",
    "brew ginger beer",
    "draw a portrait",
    "host a quiet dinner for friends",
    "learn to swim as an adult",
    "restore an old wooden chair",
    "set a mouse-friendly cat flap",
    "write a thank-you note",
    "measure a room for carpet",
    "make soap from olive oil",
    "read a weather map",
    "care for a cactus",
    "tune a ukulele",
    "translate a menu into French",
    "record a podcast at home",
    "plan a school trip to a museum",
    "write a bedtime story about a fox",
    "explain how rainbows form",
    "count calories sensibly",
    "sleep better during summer",
    "make a website for a bakery",
    "plot a line chart in R",
    "ride a horse safely",
    "grind coffee for espresso",
    "assemble a flat-pack wardrobe",
    "write a product description for a lamp",
    "memorise a poem",
    "run a small charity raffle",
    "wash a wool jumper",
    "identify common garden birds",
    "debug a slow web page",
    "make pancakes for ten people",
    "choose hiking boots",
    "write a toast for a retirement",
)


def instruction_prompts(rng: random.Random, limit: int = 1100) -> Iterator[str]:
    """``limit`` instructions, each a form filled with a task, no pair used twice."""
    pairs = list(itertools.product(FORMS, TASKS))
    for form, task in rng.sample(pairs, limit):
        yield form.format(task)
