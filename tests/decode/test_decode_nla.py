from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tiny_nla
import torch
from safetensors.torch import load_file, save_file

from nae_monitor.decode import Decoder, Nla, load_nla, measure
from nae_monitor.errors import CheckpointError, UnsupportedError, VectorError
from nae_monitor.settings import NlaSettings


def load(tiny: Any, form: str = "adapter", **options: Any) -> Nla:
    return load_nla(
        *getattr(tiny, form),
        settings=NlaSettings(device="cpu", max_new_tokens=12, **options),
        resolve_base=tiny.resolve,
        target_d_model=tiny_nla.D,
        target_layer=tiny_nla.LAYER,
    )


def vectors(count: int) -> torch.Tensor:
    return 3 * torch.randn(count, tiny_nla.D, generator=torch.Generator().manual_seed(2))


def without_seconds(decodings: list[Any]) -> list[Any]:
    return [dataclasses.replace(d, seconds=0.0) for d in decodings]


def test_a_pair_decodes_and_measures_each_row(tiny: Any) -> None:
    nla: Decoder = load(tiny)
    assert (nla.nla_id, nla.d_model, nla.layer) == ("tiny-l2-v1", tiny_nla.D, tiny_nla.LAYER)
    batch = vectors(5)
    found = nla.decode(batch)
    assert isinstance(nla, Nla)
    rebuilt = nla.reconstructor.reconstruct([d.text for d in found])
    for h, r, d in zip(batch, rebuilt, found, strict=True):
        expected = measure(h, r, nla.reference)
        assert (d.cosine, d.fve, d.rank) == (expected.cosine, expected.fve, expected.rank)
        assert d.bank_size == 256
        assert d.nla_id == "tiny-l2-v1"
        assert d.seconds > 0


def test_a_decoding_is_the_same_whatever_the_batch_to_the_last_bit(tiny: Any) -> None:
    nla = load(tiny, batch_size=4)
    batch = vectors(6)
    together = without_seconds(nla.decode(batch))
    alone = without_seconds([nla.decode(row[None])[0] for row in batch])
    assert together == alone


def test_seeds_ask_for_samples_although_the_settings_say_greedy(llama: Any) -> None:
    nla = load(llama)
    batch = vectors(4)
    first = [d.text for d in nla.decode(batch, seeds=[1, 2, 3, 4])]
    assert first == [d.text for d in nla.decode(batch, seeds=[1, 2, 3, 4])]
    assert first != [d.text for d in nla.decode(batch, seeds=[5, 6, 7, 8])]
    assert first != [d.text for d in nla.decode(batch)]


def test_a_temperature_in_the_settings_samples_by_seed_and_vector(llama: Any) -> None:
    batch = vectors(4)
    one, again, other = (
        [d.text for d in load(llama, temperature=1.0, seed=s).decode(batch)] for s in (1, 1, 2)
    )
    assert one == again
    assert one != other


def test_without_statistics_the_figures_are_unknown(
    official_copy: tuple[Path, Path], llama: Any
) -> None:
    (official_copy[1] / "fidelity.safetensors").unlink()
    nla = load_nla(
        *official_copy,
        settings=NlaSettings(device="cpu", max_new_tokens=6),
        resolve_base=llama.resolve,
    )
    (found,) = nla.decode(vectors(1))
    assert found.cosine is not None
    assert (found.fve, found.rank, found.bank_size) == (None, None, 0)


def test_no_vectors_give_no_decodings(llama: Any) -> None:
    assert load(llama).decode(torch.empty(0, tiny_nla.D)) == []


def test_a_vector_of_another_width_is_refused(llama: Any) -> None:
    with pytest.raises(VectorError, match="32"):
        load(llama).decode(torch.ones(1, 16))


def test_weights_that_lack_a_tensor_are_refused_at_load(
    official_copy: tuple[Path, Path], llama: Any
) -> None:
    path = official_copy[0] / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj"):
        load_nla(*official_copy, settings=NlaSettings(device="cpu"), resolve_base=llama.resolve)


def test_weights_of_another_shape_are_refused_at_load(
    official_copy: tuple[Path, Path], llama: Any
) -> None:
    path = official_copy[0] / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = torch.ones(tiny_nla.D + 1)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=str(path.parent)):
        load_nla(*official_copy, settings=NlaSettings(device="cpu"), resolve_base=llama.resolve)


def test_a_verbalizer_without_its_final_norm_is_refused(
    official_copy: tuple[Path, Path], llama: Any
) -> None:
    path = official_copy[0] / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.norm"):
        load_nla(*official_copy, settings=NlaSettings(device="cpu"), resolve_base=llama.resolve)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_cuda_is_refused(llama: Any) -> None:
    with pytest.raises(UnsupportedError, match="CUDA"):
        load_nla(*llama.official, settings=NlaSettings(device="cuda"), resolve_base=llama.resolve)


def test_loading_prints_nothing(llama: Any, capfd: pytest.CaptureFixture[str]) -> None:
    load(llama)
    assert capfd.readouterr() == ("", "")
