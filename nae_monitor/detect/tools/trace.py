"""Every selection of a rule asked, without the engine's short cuts: for explaining and coverage."""

from __future__ import annotations

from nae_monitor.detect.evaluation import Answer, SemanticAnswerer
from nae_monitor.detect.schema import Rule, Selection
from nae_monitor.detect.semantic import SemanticMatcher
from nae_monitor.detect.views import Missing, Views


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
    view = views.view(selection.field, selection.quotes, selection.case)
    if isinstance(view, Missing):
        return Answer(None, why=view.why)
    why = ""
    if isinstance(selection.matcher, SemanticMatcher):
        hits, why = semantic(rule, selection, view)
    else:
        hits = selection.matcher.find(view.text)
    if hits:
        return Answer(True, tuple(view.span(selection.name, hit) for hit in hits))
    if not why and view.truncated:
        why = f"the {view.field} is longer than is searched"
    return Answer(None, why=why) if why else Answer(False)
