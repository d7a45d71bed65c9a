"""Every selection of a rule asked, without the engine's short cuts: for explaining and coverage."""

from __future__ import annotations

from nae_monitor.detect.evaluation import Answer, SemanticAnswerer, ask_selection
from nae_monitor.detect.schema import Rule, Selection
from nae_monitor.detect.views import Views


def all_answers(rule: Rule, views: Views, semantic: SemanticAnswerer) -> dict[str, Answer]:
    """What each selection of ``rule`` says, exceptions' own selections included."""
    return {
        name: one_answer(rule, selection, views, semantic)
        for name, selection in rule.selections.items()
    }


def one_answer(
    rule: Rule, selection: Selection, views: Views, semantic: SemanticAnswerer
) -> Answer:
    """What one selection says; unknown where its input is missing."""
    return ask_selection(rule, selection, views, semantic)
