"""Checks of what single selections look for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nae_monitor.detect.engine import semantic_answerer
from nae_monitor.detect.lint.conditions import sufficient_alone
from nae_monitor.detect.lint.diagnostics import Diagnostic, diagnose
from nae_monitor.detect.lint.subject import LintSubject, benign_texts
from nae_monitor.detect.schema import Selection
from nae_monitor.detect.semantic import SemanticMatcher
from nae_monitor.detect.tools.trace import one_answer
from nae_monitor.detect.views import Subject, Views
from nae_monitor.health import Health

MIN_KEYWORD_CHARS = 4
MIN_FUZZY_CHARS = 12
MIN_FUZZY_SCORE = 80
MAX_BENIGN_SHARE = 0.05


def check_keywords(subject: LintSubject) -> Iterator[Diagnostic]:
    """NM203: short keywords that are looked for inside words."""
    for _, path in subject.selection_paths():
        selection = subject.get(*path)
        if selection.get("word") is not False or not isinstance(selection.get("keywords"), dict):
            continue
        for group in ("any", "all"):
            for index, word in enumerate(selection["keywords"].get(group) or ()):
                if isinstance(word, str) and len(word.strip()) < MIN_KEYWORD_CHARS:
                    where = subject.mark(*path, "keywords", group, index)
                    message = f"keyword {word!r} is looked for inside words"
                    yield diagnose("NM203", where, message, "remove `word: false`")


def check_fuzzy(subject: LintSubject) -> Iterator[Diagnostic]:
    """NM204: phrases so short, or scores so low, that other words pass for them."""
    for _, path in subject.selection_paths():
        fuzzy = subject.get(*path, "fuzzy")
        if not isinstance(fuzzy, dict):
            continue
        score = fuzzy.get("score")
        if isinstance(score, int | float) and score < MIN_FUZZY_SCORE:
            where = subject.mark(*path, "fuzzy", "score")
            message = f"a fuzzy score of {score:g} matches other phrases too"
            yield diagnose("NM204", where, message, f"use {MIN_FUZZY_SCORE} to 95")
        for index, phrase in enumerate(fuzzy.get("any") or ()):
            if isinstance(phrase, str) and len(phrase.strip()) < MIN_FUZZY_CHARS:
                where = subject.mark(*path, "fuzzy", "any", index)
                message = f"fuzzy phrase {phrase!r} has under {MIN_FUZZY_CHARS} characters"
                yield diagnose("NM204", where, message, "use keywords, or a longer phrase")


def check_benign(subject: LintSubject) -> Iterator[Diagnostic]:
    """NM205: selections that suffice for a match and match much of what is ordinary."""
    rule = subject.rule
    if rule is None:
        return
    speaking = [
        rule.selections[name]
        for name in sufficient_alone(rule)
        if rule.selections[name].field.startswith("explanation")
        and rule.selections[name].quotes != "only"
        and not isinstance(rule.selections[name].matcher, SemanticMatcher)
    ]
    texts = benign_texts()
    hits = dict.fromkeys((selection.name for selection in speaking), 0)
    for text in texts:
        views = Views(Subject(text, "", "", "", {}))
        for selection in speaking:
            answer = one_answer(rule, selection, views, lambda *_: ([], ""))
            hits[selection.name] += answer.matched is True
    for name, count in hits.items():
        if count > MAX_BENIGN_SHARE * len(texts):
            message = f"{name!r} matches {count} of {len(texts)} ordinary explanations"
            where = subject.mark("detection", name)
            yield diagnose("NM205", where, message, "narrow it: most alerts would be about nothing")


def check_negatives(subject: LintSubject) -> Iterator[Diagnostic]:
    """NM301: a threshold with nothing to beat."""
    for name, path in subject.selection_paths():
        semantic = subject.get(*path, "semantic")
        if isinstance(semantic, dict) and not semantic.get("negatives"):
            where = subject.mark(*path, "semantic")
            mend = "add `negatives:` with what is easily taken for it, and a `margin:`"
            yield diagnose("NM301", where, f"{name!r} has a threshold and no negatives", mend)


def check_sentences(subject: LintSubject) -> Iterator[Diagnostic]:
    """NM302, NM303: a selection's own sentences through the encoder, where one is loaded."""
    rule, encoder = subject.rule, subject.options.encoder
    if rule is None or encoder is None:
        return
    answer = semantic_answerer([rule], encoder, Health())
    for name, path in subject.selection_paths():
        selection = rule.selections.get(name)
        if selection is None or not isinstance(selection.matcher, SemanticMatcher):
            continue
        for group, wanted, code in (("exemplars", True, "NM302"), ("negatives", False, "NM303")):
            for index, sentence in enumerate(getattr(selection.matcher, group)):
                views = Views(Subject(sentence, sentence, sentence, sentence, {}))
                found = one_answer(rule, _anywhere(selection), views, answer)
                if found.matched is not None and found.matched is not wanted:
                    where = subject.mark(*path, "semantic", group, index)
                    verb = "does not match" if wanted else "matches"
                    message = f"{name!r} {verb} its own {group[:-1]}"
                    yield diagnose(code, where, message, "move it, the threshold or the margin")


def _anywhere(selection: Selection) -> Selection:
    """The same comparison over a whole text, whatever field and quotes it looks at."""
    return replace(selection, field="explanation", quotes="any")
