"""The sidecar of a merged checkpoint, with every key that readers of the released pairs look for.

Newer and older readers look under different names, so the layer index stands under each of them,
and where both halves are known each sidecar holds the templates and tokens of both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from nae_monitor.decode.contract import ArContract, AvContract
from nae_monitor.strict_yaml import read_document

SCHEMA_VERSION = 2  # of the released pairs
# What a source says of its own making is passed on as it stands.
PROVENANCE = (
    "stage",
    "base_checkpoint",
    "trained_on",
    "parent_checkpoints",
    "created_at",
    "created_by",
    "training",
)


def official_sidecar(
    role: Literal["av", "ar"], av: AvContract | None, ar: ArContract | None
) -> dict[str, Any]:
    """The content of ``nla_meta.yaml`` for one half of a pair.

    Args:
        role: which half; its contract must be given.
        av: the verbalizer's contract.
        ar: the reconstructor's.
    """
    own = av if role == "av" else ar
    if own is None:
        raise ValueError(f"the sidecar of an {role} needs its contract")
    return {
        "kind": "nla_model",
        "schema_version": SCHEMA_VERSION,
        "role": role,
        "nla_id": own.nla_id,
        "d_model": own.d_model,
        "extraction": _extraction(role, av, ar),
        **_layer(ar),
        "tokens": {**_marker(av), **({"critic_suffix_ids": list(ar.suffix_ids)} if ar else {})},
        "prompt_templates": {
            **({"av": av.prompt_template} if av else {}),
            **({"ar": ar.prompt_template} if ar else {}),
        },
        **_provenance(own),
    }


def _extraction(role: str, av: AvContract | None, ar: ArContract | None) -> dict[str, Any]:
    """A reconstructor injects nothing, so its scale is null, as in the released ones."""
    index = ar.layer_index if ar else av.layer_index if av else None
    return {
        **({} if index is None else {"layer_index": index}),
        "injection_scale": av.injection_scale if av and role == "av" else None,
        **({"mse_scale": ar.mse_scale} if ar else {}),
    }


def _layer(ar: ArContract | None) -> dict[str, Any]:
    if ar is None:
        return {}
    return {
        "ar": {"num_hidden_layers": ar.layer_index},
        "critic": {"extraction_layer_index": ar.layer_index},
    }


def _marker(av: AvContract | None) -> dict[str, Any]:
    if av is None:
        return {}
    return {
        "injection_char": av.injection_char,
        "injection_token_id": av.injection_token_id,
        "injection_left_neighbor_id": av.left_neighbor_id,
        "injection_right_neighbor_id": av.right_neighbor_id,
    }


def _provenance(own: AvContract | ArContract) -> dict[str, Any]:
    document = read_document(Path(own.file)).value
    known = {key: document[key] for key in PROVENANCE if key in document}
    base = {"base_checkpoint": own.base_model} if own.base_model else {}
    made = {"parent_checkpoints": [own.nla_id], "created_by": "nae-monitor nla export --merged"}
    return {**made, **base, **known}
