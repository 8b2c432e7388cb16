"""The VAE against figures of the original code, and its bookkeeping."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder
from safetensors import safe_open

from core.temporal_vae import TemporalVAE
from core.vae import build_mira_vae, convert_vae_state_dict, decode_latents, diffusers_vae_name, encode_video, fit_latent_rgb, mira_vae_config, preview_frames

DATA = Path(__file__).parents[1] / "data"
NARROW = dict(down_block_types=("DownEncoderBlock2D",) * 2, block_out_channels=(32, 32), layers_per_block=1, latent_channels=3, norm_num_groups=4, scaling_factor=0.5)


@pytest.fixture(scope="module")
def original():
    """The original's tiny VAE on diffusers' class, and its figures."""
    with safe_open(DATA / "vae.safetensors", "pt") as file:
        vae = build_mira_vae(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1)
        vae.load_state_dict(convert_vae_state_dict({k.removeprefix("weights."): file.get_tensor(k).float() for k in file.keys() if k.startswith("weights.")}))
        return vae.eval(), {k: file.get_tensor(k) for k in file.keys() if not k.startswith("weights.")}


def close(ours, theirs):
    return (ours - theirs).abs().max() <= 1e-3 * theirs.abs().max()


@torch.no_grad()
def test_encoder_moments_equal_the_original(original):
    vae, figures = original
    assert close(vae.encode(figures["encode.frames"]).latent_dist.parameters, figures["encode.moments"])
    mode = figures["encode.moments"].chunk(2, 1)[0] * 0.18215
    latents = encode_video(vae, figures["encode.frames"].transpose(0, 1)[None])
    assert close(latents[0].transpose(0, 1), mode)


@pytest.mark.parametrize("name, chunk_frames", [("decode.frames", None), ("decode.frames_two_chunks", 4)])
def test_decodes_equal_the_original(original, name, chunk_frames):
    vae, figures = original
    latents = figures["decode.latents"].transpose(0, 1)[None] * vae.config.scaling_factor
    assert close(decode_latents(vae, latents, chunk_frames)[0].transpose(0, 1), figures[name])


def test_whole_and_chunked_decodes_differ_at_the_seam(original):
    vae, figures = original
    assert not close(figures["decode.frames"], figures["decode.frames_two_chunks"])


def test_every_tensor_of_the_released_vae_has_its_place():
    with gzip.open(DATA / "state_dict_keys.json.gz", "rt") as file:
        theirs = {k.removeprefix("first_stage_model."): torch.empty(v, device="meta") for k, v in json.load(file)["vae"].items()}
    with torch.device("meta"):
        ours = {k: v.shape for k, v in AutoencoderKLTemporalDecoder(**mira_vae_config()).state_dict().items()}
    assert {k: v.shape for k, v in convert_vae_state_dict(theirs).items()} == ours


@pytest.mark.parametrize("name", ["decoder.mid.attn_9.q.weight", "loss.logvar", "encoder.surprise.weight"])
def test_a_tensor_of_something_else_is_named(name):
    with pytest.raises(KeyError, match=name):
        diffusers_vae_name(name)


def test_encoding_in_slices_changes_nothing(monkeypatch):
    torch.manual_seed(0)
    vae, frames = TemporalVAE(**NARROW).eval(), torch.rand(2, 3, 5, 8, 8) * 2 - 1
    at_once = encode_video(vae, frames)
    monkeypatch.setattr("core.vae.ENCODE_FRAMES", 3)
    torch.testing.assert_close(encode_video(vae, frames), at_once)
    assert at_once.shape == (2, 3, 5, 4, 4)


def test_a_sampled_encoding_does_not_depend_on_the_slices(monkeypatch):
    torch.manual_seed(0)
    vae, frames = TemporalVAE(**NARROW).eval(), torch.rand(1, 3, 5, 8, 8) * 2 - 1
    draw = lambda: encode_video(vae, frames, torch.Generator().manual_seed(3))  # noqa: E731
    at_once = draw()
    monkeypatch.setattr("core.vae.ENCODE_FRAMES", 2)
    torch.testing.assert_close(draw(), at_once)


def test_fewer_groups_survive_a_round_trip(tmp_path):
    vae = TemporalVAE(**NARROW)
    vae.save_pretrained(tmp_path)
    again = TemporalVAE.from_pretrained(tmp_path)
    assert {m.num_groups for m in again.modules() if isinstance(m, torch.nn.GroupNorm)} == {4}


def test_with_32_groups_it_is_diffusers_class():
    wide = dict(NARROW)
    wide.pop("norm_num_groups")
    torch.manual_seed(0)
    ours = TemporalVAE(**wide).eval()
    theirs = AutoencoderKLTemporalDecoder(**wide).eval()
    theirs.load_state_dict(ours.state_dict())
    latents = torch.randn(1, 3, 2, 4, 4)
    torch.testing.assert_close(decode_latents(ours, latents), decode_latents(theirs, latents))


def test_the_preview_map_recovers_a_linear_code():
    """Latents that are colours, shifted and scaled, give those colours back."""

    class Linear:
        config = SimpleNamespace(block_out_channels=(1,), scaling_factor=2.0)
        dtype = torch.float32

        def encode(self, images):
            mode = torch.stack([images[:, 1] * 0.5, images[:, 0] + 0.1, images[:, 2] - images[:, 0]], 1)
            return SimpleNamespace(latent_dist=SimpleNamespace(parameters=torch.cat([mode, torch.zeros_like(mode)], 1)))

    frames = torch.rand(2, 3, 4, 6, 6) * 2 - 1
    latent_rgb = fit_latent_rgb(Linear(), frames)
    preview = preview_frames(encode_video(Linear(), frames), latent_rgb)
    expected = ((frames + 1) * 127.5).permute(0, 2, 3, 4, 1)
    assert preview.shape == expected.shape
    assert (preview.float() - expected).abs().max() < 1


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (1, 4, 2, 8, 8), (1, 3, 2, 7, 8)])
def test_frames_of_the_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"Frames"):
        encode_video(TemporalVAE(**NARROW), torch.zeros(shape))
