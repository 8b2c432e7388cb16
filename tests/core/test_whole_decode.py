"""A clip decoded layer by layer is the clip decoded at once, in less memory and with no more work."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from core.temporal_vae import TemporalVAE
from core.vae import decode_latents
from core.whole_decode import decode_whole
from measure import peak_memory, work


@pytest.fixture(scope="module")
def vae() -> TemporalVAE:
    torch.manual_seed(0)
    small = dict(down_block_types=("DownEncoderBlock2D",) * 3, block_out_channels=(32, 32, 32), layers_per_block=2, norm_num_groups=8)
    return TemporalVAE(**small).eval().requires_grad_(False)


def undivided(vae: TemporalVAE, latents: torch.Tensor) -> torch.Tensor:
    return vae.decode(latents, num_frames=len(latents)).sample


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, over the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("num_frames, at_once", [(1, None), (2, 1), (7, 3), (7, 7), (30, None), (30, 4)])
def test_it_is_the_undivided_decode(vae: TemporalVAE, num_frames: int, at_once: int | None) -> None:
    latents = torch.randn(num_frames, 4, 4, 6, generator=torch.Generator().manual_seed(1))
    assert error(decode_whole(vae, latents, at_once), undivided(vae, latents)) < 1e-5
    exact = vae.double()
    try:
        assert error(decode_whole(exact, latents.double(), at_once), undivided(exact, latents.double())) < 1e-12
    finally:
        vae.float()


@pytest.mark.parametrize("undivided_elements", [0, 2**24])
def test_it_is_what_decode_latents_does(vae: TemporalVAE, monkeypatch: pytest.MonkeyPatch, undivided_elements: int) -> None:
    monkeypatch.setattr("core.vae.UNDIVIDED_ELEMENTS", undivided_elements)
    used = []
    monkeypatch.setattr("core.vae.decode_whole", lambda *given: used.append(1) or decode_whole(*given))
    latents = torch.randn(2, 4, 25, 4, 6)
    clips = torch.stack([undivided(vae, clip.transpose(0, 1) / vae.config.scaling_factor) for clip in latents]).transpose(1, 2)
    assert error(decode_latents(vae, latents), clips) < 1e-5
    assert len(used) == (0 if undivided_elements else 2)


def test_in_bf16_it_is_no_further_from_the_truth(vae: TemporalVAE) -> None:
    latents = torch.randn(14, 4, 4, 6, generator=torch.Generator().manual_seed(2))
    truth = undivided(vae, latents)
    half = vae.to(torch.bfloat16)
    try:
        ours, theirs = decode_whole(half, latents.bfloat16(), 4).float(), undivided(half, latents.bfloat16()).float()
    finally:
        vae.float()
    assert (ours - truth).square().mean() < 1.1 * (theirs - truth).square().mean()


def test_where_there_is_no_fp64_it_does_without(vae: TemporalVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Apple's GPUs, which refuse to make such a tensor."""

    class NoDoubles(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            assert not (isinstance(made, torch.Tensor) and made.dtype == torch.float64), func
            return made

    import core.whole_decode as module

    assert module._widest(torch.device("mps")) == torch.float32
    latents = torch.randn(7, 4, 4, 6, generator=torch.Generator().manual_seed(1))
    truth = undivided(vae, latents)
    monkeypatch.setattr(module, "_widest", lambda device: torch.float32)
    with NoDoubles():
        found = decode_whole(vae, latents, 3)
    assert error(found, truth) < 1e-5


def test_memory_is_bounded_and_work_is_the_same(vae: TemporalVAE) -> None:
    latents = torch.randn(24, 4, 20, 32)
    assert peak_memory(lambda: decode_whole(vae, latents)) < 0.4 * peak_memory(lambda: undivided(vae, latents))
    assert 0 < work(lambda: decode_whole(vae, latents)) <= 1.05 * work(lambda: undivided(vae, latents))


def test_chunks_that_overlap_by_all_that_the_convolutions_see_are_not_enough(vae: TemporalVAE) -> None:
    """29 convolutions along time see 29 frames to either side; the statistics of the norms span the clip."""
    latents = torch.randn(90, 4, 2, 2, generator=torch.Generator().manual_seed(3)) * torch.linspace(0.2, 2, 90).view(-1, 1, 1, 1)
    truth, halo = undivided(vae, latents), 29
    assert sum(isinstance(layer, torch.nn.Conv3d) for layer in vae.decoder.modules()) <= halo
    parts = [undivided(vae, latents[max(0, start - halo) : start + 30 + halo])[min(start, halo) :][:30] for start in (0, 30, 60)]
    assert error(torch.cat(parts), truth) > 1e-2
    assert error(decode_whole(vae, latents, 30), truth) < 1e-5
