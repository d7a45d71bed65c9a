"""What older readers need in the JSON files that transformers 5 writes beside weights.

The public client of the released pairs runs on transformers 4 (so does the SGLang it talks to),
which takes no notice of keys it does not know and would fill in defaults: another rotary base,
another precision, no tokenizer class. The keys added here are those that transformers 4 wrote;
version 5 reads them, too, and gives its own precedence or finds them equal.
"""

from __future__ import annotations

from typing import Any

PORTABLE_TOKENIZER = "PreTrainedTokenizerFast"  # any tokenizer.json, in either version
_OF_THIS_MACHINE = ("is_local", "local_files_only", "name_or_path")


def with_older_config_keys(config: dict[str, Any]) -> dict[str, Any]:
    """``config.json`` as a mapping, with precision and rotary embeddings also under old names."""
    values = {
        key: with_older_config_keys(value) if isinstance(value, dict) else value
        for key, value in config.items()
    }
    if isinstance(values.get("dtype"), str):
        values["torch_dtype"] = values["dtype"]
    rope = values.get("rope_parameters")
    if isinstance(rope, dict):
        values = {**_older_rope_keys(rope), **values}
    return values


def _older_rope_keys(rope: dict[str, Any]) -> dict[str, Any]:
    """Gemma 3 keeps one set of parameters for each kind of attention, the others a single one."""
    local = rope.get("sliding_attention")
    everywhere = rope.get("full_attention", rope)
    found = {
        "rope_theta": everywhere.get("rope_theta"),
        "partial_rotary_factor": everywhere.get("partial_rotary_factor"),
        "rope_local_base_freq": local.get("rope_theta") if isinstance(local, dict) else None,
    }
    if everywhere.get("rope_type", "default") != "default":
        found["rope_scaling"] = {k: v for k, v in everywhere.items() if k not in found}
    return {key: value for key, value in found.items() if value is not None}


def with_older_tokenizer_keys(config: dict[str, Any], *, names_bos: bool) -> dict[str, Any]:
    """``tokenizer_config.json`` as a mapping that both versions read alike.

    Args:
        config: as transformers 5 wrote it.
        names_bos: False writes ``bos_token: null``. A name without use is not harmless: the
            client takes it for a promise that every encoded text begins with that token.
    """
    values = {key: value for key, value in config.items() if key not in _OF_THIS_MACHINE}
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = PORTABLE_TOKENIZER
    if isinstance(values.get("extra_special_tokens"), list):  # version 4: a mapping by name
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    if not names_bos:
        values["bos_token"] = None
    return values
