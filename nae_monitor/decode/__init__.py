"""decode: the Natural Language Autoencoder, from checkpoint contract to measured explanations."""

from nae_monitor.decode.cache import DecodeCache, Reuse
from nae_monitor.decode.checkpoint import open_ar, open_av, open_pair, read_ar_contract
from nae_monitor.decode.contract import (
    ArCheckpoint,
    ArContract,
    AvCheckpoint,
    AvContract,
    FidelityReference,
)
from nae_monitor.decode.fidelity import Fidelity, fve, measure
from nae_monitor.decode.merged import write_merged_ar, write_merged_av, write_merged_pair
from nae_monitor.decode.nla import Decoder, Nla, general_path, load_nla, verbalizer_weights
from nae_monitor.decode.reconstructor import Reconstructor, load_reconstructor
from nae_monitor.decode.vectors import VectorScreen, check_vectors, screen_vectors
from nae_monitor.decode.verbalizer import Verbalizer, load_verbalizer

__all__ = [
    "ArCheckpoint",
    "ArContract",
    "AvCheckpoint",
    "AvContract",
    "DecodeCache",
    "Decoder",
    "Fidelity",
    "FidelityReference",
    "Nla",
    "Reconstructor",
    "Reuse",
    "VectorScreen",
    "Verbalizer",
    "check_vectors",
    "fve",
    "general_path",
    "load_nla",
    "load_reconstructor",
    "load_verbalizer",
    "measure",
    "open_ar",
    "open_av",
    "open_pair",
    "read_ar_contract",
    "screen_vectors",
    "verbalizer_weights",
    "write_merged_ar",
    "write_merged_av",
    "write_merged_pair",
]
