"""Read ``nla_meta.yaml`` strictly: required keys by type and range, every problem with its place.

Official sidecars carry further keys (provenance, training notes); those are ignored. Older ones
say ``actor`` and ``critic`` where newer ones say ``av`` and ``ar``. Layer indexes are turned into
this package's count of layers here and nowhere else (see ``contract.py``).
"""

from __future__ import annotations

import math
import string
from pathlib import Path
from typing import Any

from nae_monitor.decode.contract import SIDECAR, ArContract, AvContract
from nae_monitor.errors import ConfigurationError, Mark, Problem
from nae_monitor.strict_yaml import Document, KeyPath, read_document

SQRT_D = "sqrt_d_model"  # sentinel of the official schema for sqrt(d_model)
LAYER_KEYS: tuple[KeyPath, ...] = (("extraction", "layer_index"), ("extraction_layer_index",))
# All of them hold K, also the one that is called as config.json calls its K + 1.
AR_LAYER_KEYS: tuple[KeyPath, ...] = (
    ("ar", "num_hidden_layers"),
    ("critic", "extraction_layer_index"),
    ("critic", "num_hidden_layers"),
    *LAYER_KEYS,
)


class Fields:
    """Typed access to a sidecar; a missing or wrong value becomes a problem and reads as None."""

    def __init__(self, document: Document, problems: list[Problem]) -> None:
        self.document = document
        self.problems = problems

    def problem(self, path: KeyPath, message: str, mend: str, code: str) -> None:
        """Note a problem at the place of ``path``."""
        key = ".".join(str(step) for step in path)
        self.problems.append(Problem(self.document.mark(path), f"{key} {message}", mend, code))

    def get(self, path: KeyPath) -> Any:
        """The value at ``path``, or None."""
        value = self.document.value
        for step in path:
            if not isinstance(value, dict) or step not in value:
                return None
            value = value[step]
        return value

    def missing(self, path: KeyPath) -> None:
        """Note that a required key is missing or empty."""
        self.problem(path, "is missing", "the sidecar must hold it", f"missing:{_dotted(path)}")

    def text(self, path: KeyPath) -> str | None:
        """A required text that is not empty."""
        value = self.get(path)
        if value is None or value == "":
            self.missing(path)
        elif isinstance(value, str):
            return value
        else:
            self._wrong(path, "text")
        return None

    def integer(self, path: KeyPath, minimum: int) -> int | None:
        """A required whole number of at least ``minimum``."""
        value = self.get(path)
        if value is None:
            self.missing(path)
        elif isinstance(value, int) and not isinstance(value, bool) and value >= minimum:
            return value
        else:
            self._wrong(path, f"a whole number of at least {minimum}")
        return None

    def scale(self, path: KeyPath, d_model: int | None) -> float | None:
        """A required norm: a finite number above 0, or the official ``sqrt_d_model``."""
        value = self.get(path)
        if value is None:
            self.missing(path)
        elif value == SQRT_D:
            return math.sqrt(d_model) if d_model else None
        elif isinstance(value, int | float) and not isinstance(value, bool):
            if math.isfinite(value) and value > 0:
                return float(value)
            self._wrong(path, "a finite number above 0")
        else:
            self._wrong(path, f"a number above 0, or {SQRT_D}")
        return None

    def agreeing(self, paths: tuple[KeyPath, ...], minimum: int) -> int | None:
        """The one whole number that the present keys among ``paths`` agree on, if any."""
        present = self.present(paths)
        values = [self.integer(path, minimum) for path in present]
        known = {value for value in values if value is not None}
        if len(known) > 1:
            others = ", ".join(_dotted(path) for path in present[1:])
            self.problem(present[0], f"disagrees with {others}", "one layer only", "layer-conflict")
        return next(iter(known)) if len(known) == 1 else None

    def present(self, paths: tuple[KeyPath, ...]) -> list[KeyPath]:
        """Those of ``paths`` that hold a value."""
        return [path for path in paths if self.get(path) is not None]

    def _wrong(self, path: KeyPath, wanted: str) -> None:
        self.problem(path, "has the wrong value", f"expected {wanted}", f"value:{_dotted(path)}")


def open_sidecar(
    directory: Path, role: str, older: str, problems: list[Problem]
) -> tuple[Fields, str] | None:
    """Open a sidecar and check its kind and role.

    Returns:
        The fields and the name that its role's prompt template goes by, or None.
    """
    if not directory.is_dir():
        where = Mark(str(directory))
        problems.append(
            Problem(where, f"no such {role.upper()} directory", "", "directory-missing")
        )
        return None
    path = directory / SIDECAR
    if not path.is_file():
        mend = f"an NLA checkpoint holds a {SIDECAR}; ask its provider"
        problems.append(Problem(Mark(str(path)), "the sidecar is missing", mend, "sidecar-missing"))
        return None
    try:
        document = read_document(path)
    except ConfigurationError as error:
        problems.extend(error.problems)
        return None
    fields = Fields(document, problems)
    if not isinstance(document.value, dict):
        problems.append(Problem(Mark(str(path)), "must be a mapping", "", "sidecar-shape"))
        return None
    if fields.get(("kind",)) != "nla_model":
        fields.problem(("kind",), "is not nla_model", "this is no model sidecar", "kind")
    if fields.get(("role",)) not in (role, older):
        mend = f"expected {role} (older: {older}); are the two directories swapped?"
        fields.problem(("role",), "is of another role", mend, "role")
        return None
    templates = fields.get(("prompt_templates",))
    uses_older = isinstance(templates, dict) and role not in templates and older in templates
    return fields, older if uses_older else role


def read_av(fields: Fields, name: str, directory: Path) -> AvContract | None:
    """The verbalizer's contract, or None where a problem was noted."""
    before = len(fields.problems)
    d_model = fields.integer(("d_model",), 1)
    scale = fields.scale(("extraction", "injection_scale"), d_model)
    layer_index = fields.agreeing(LAYER_KEYS, 0)
    char = fields.text(("tokens", "injection_char"))
    token = fields.integer(("tokens", "injection_token_id"), 0)
    left = fields.integer(("tokens", "injection_left_neighbor_id"), 0)
    right = fields.integer(("tokens", "injection_right_neighbor_id"), 0)
    template = _template(fields, name, "injection_char")
    base_model = _optional_text(fields, "base_model")
    nla_id = _optional_text(fields, "nla_id")
    if d_model is None or scale is None or char is None or template is None:
        return None
    if token is None or left is None or right is None or len(fields.problems) > before:
        return None
    return AvContract(
        file=fields.document.file,
        nla_id=nla_id or directory.name,
        d_model=d_model,
        layer=None if layer_index is None else layer_index + 1,
        injection_scale=scale,
        injection_char=char,
        injection_token_id=token,
        left_neighbor_id=left,
        right_neighbor_id=right,
        prompt_template=template,
        base_model=base_model,
    )


def read_ar(fields: Fields, name: str, directory: Path) -> ArContract | None:
    """The reconstructor's contract, or None where a problem was noted."""
    before = len(fields.problems)
    d_model = fields.integer(("d_model",), 1)
    mse_scale = fields.scale(("extraction", "mse_scale"), d_model)
    if not fields.present(AR_LAYER_KEYS):
        fields.missing(AR_LAYER_KEYS[0])
    layer_index = fields.agreeing(AR_LAYER_KEYS, 0)
    suffix = _suffix_ids(fields)
    template = _template(fields, name, "explanation")
    base_model = _optional_text(fields, "base_model")
    nla_id = _optional_text(fields, "nla_id")
    if d_model is None or mse_scale is None or layer_index is None or suffix is None:
        return None
    if template is None or len(fields.problems) > before:
        return None
    return ArContract(
        file=fields.document.file,
        nla_id=nla_id or directory.name,
        d_model=d_model,
        layer=layer_index + 1,
        mse_scale=mse_scale,
        suffix_ids=suffix,
        prompt_template=template,
        base_model=base_model,
    )


def render(template: str, field: str, value: str) -> str:
    """What ``template.format(field=value)`` gives, without format's attribute access.

    Doubled braces become single ones; braces of the value stay as they are.
    """
    parts: list[str] = []
    for literal, name, _, _ in string.Formatter().parse(template):
        parts.append(literal)
        if name == field:
            parts.append(value)
    return "".join(parts)


def _template(fields: Fields, name: str, field: str) -> str | None:
    path: KeyPath = ("prompt_templates", name)
    template = fields.text(path)
    if template is None:
        return None
    try:
        found = [f for f in string.Formatter().parse(template) if f[1] is not None]
    except ValueError:
        found = []
    if len(found) != 1 or found[0][1:] != (field, "", None):
        mend = f"write {{{field}}} exactly once; double every other brace"
        fields.problem(path, f"must hold {{{field}}} and no other field", mend, f"template:{name}")
        return None
    return template


def _suffix_ids(fields: Fields) -> tuple[int, ...] | None:
    """The pinned suffix; an empty list says that nothing stands behind the explanation."""
    path: KeyPath = ("tokens", "critic_suffix_ids")
    value = fields.get(path)
    if value is None:
        fields.missing(path)
    elif isinstance(value, list) and all(type(item) is int and item >= 0 for item in value):
        return tuple(value)
    else:
        fields.problem(
            path, "has the wrong value", "expected token ids", "value:tokens.critic_suffix_ids"
        )
    return None


def _optional_text(fields: Fields, key: str) -> str | None:
    return fields.text((key,)) if fields.get((key,)) is not None else None


def _dotted(path: KeyPath) -> str:
    return ".".join(str(step) for step in path)
