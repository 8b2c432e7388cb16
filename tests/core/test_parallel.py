"""Two processes, over gloo, make what one makes."""

import pytest
import torch

from core import GenerationRequest, load_pipeline
from core.types import GenerationCancelled, GenerationError, RequestError
from tiny import tiny_pipeline

SHAPE = dict(height=32, width=64, num_inference_steps=2, sampler="dpm++2m", seed=3)
PROMPT = "a small red ball moves left"


def assert_close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Sums of fp32 in another order, through two steps and guidance: some units in the last place of the largest value (some 90), by how a CPU's products are cut up."""
    assert (ours - expected).abs().max() <= 3e-6 * expected.abs().max()


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    """Models whose temporal blocks look at one patch, at windows of 1 x 2 and at whole frames, as folders that another process can load."""
    pipes = []
    for name, window in (("patch", None), ("windows", (1, 2)), ("frame", "frame")):
        folder = tmp_path_factory.mktemp(name)
        tiny_pipeline(window_attn=window).save_pretrained(folder / "model")
        pipes.append(load_pipeline(folder / "model", device="cpu", dtype="fp32", data_dir=folder))
        pipes[-1].set_progress_bar_config(disable=True)
    yield pipes
    for pipe in pipes:
        pipe.share_work(1)


def test_two_processes_make_what_one_makes(pipes):
    """Guidance's halves apart; without guidance frames and patches in parts; after a video that was given up, too."""
    one, windows, frame = pipes

    def latents(pipe, guidance_scale, temporal_guidance_scale=1.0, num_frames=5, **more):
        return pipe.generate(GenerationRequest(PROMPT, guidance_scale=guidance_scale, temporal_guidance_scale=temporal_guidance_scale, num_frames=num_frames, **SHAPE), output_type="latent", **more).frames

    cases = [(one, 4.0, 1.0), (one, 1.0, 1.0), (windows, 1.0, 1.0), (frame, 4.0, 0.0), (one, 1.0, 0.0, 1)]  # the last has one frame for two processes
    alone = [latents(*case) for case in cases]
    one.share_work(2)
    windows.crew = frame.crew = one.crew
    branches = []
    exchange = one.crew.exchange
    one.crew.exchange = lambda prediction: branches.append(one.crew.branch) or exchange(prediction)
    for case, expected in zip(cases, alone):
        assert_close(latents(*case), expected)
    assert branches == [0] * 4 and one.transformer.sequence is None

    def give_up(*_):
        raise GenerationCancelled("enough")

    for scale in (4.0, 1.0):
        with pytest.raises(GenerationCancelled):
            latents(one, scale, callback=give_up)
        assert_close(latents(one, 1.0), alone[1])
    with pytest.raises(RequestError, match="cannot be parted"):
        latents(frame, 1.0)
    with torch.no_grad():
        good = one.transformer.proj_out.bias.clone()
        one.transformer.proj_out.bias.fill_(float("nan"))
    with pytest.raises(GenerationError):
        latents(one, 4.0)
    one.transformer.proj_out.bias.data.copy_(good)
    helper = one.crew.helpers[0]
    helper.kill()
    with pytest.raises(RuntimeError, match="has ended"):
        latents(one, 4.0)
    windows.crew = frame.crew = None
    assert one.crew is None
    torch.testing.assert_close(latents(one, 4.0), alone[0])
