"""The pipeline on a tiny random model: seeds, batches, guidance, cancelling, round trips, and Mira's own sampling figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import TEXT_DIM, tiny_pipeline

from core import GenerationCancelled, GenerationRequest, MiraPipeline, MiraScheduler, MiraTransformer3DModel, RequestError, TemporalVAE
from core.guidance import predictions_per_step, scales_at
from core.pipeline import GenerationError
from core.quality import QUALITIES, Quality
from core.schedulers_info import SAMPLERS
from core.text_encoder import LazyTextEncoder

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
SMALL = dict(height=32, width=48, num_frames=3, num_inference_steps=3, guidance_scale=3.0, fps=6, sampler="ddim", eta=1.0)
PROMPT, OTHER = "a small red ball moves left", "a big blue box over the sea"


def latents_of(pipe, prompt=PROMPT, seed=5, **changes) -> torch.Tensor:
    return pipe(prompt, seed=seed, output_type="latent", **(SMALL | changes)).frames


# --- Mira's own figures ---


@pytest.mark.parametrize("model", ["transformer_v0", "transformer_v1", "transformer_window"])
@pytest.mark.parametrize(
    "trace, steps, eta, guidance, plain",
    [
        ("steps20_eta0_cfg1_noscale", 20, 0.0, 1.0, True),
        ("steps20_eta0_cfg7p5", 20, 0.0, 7.5, False),
        ("steps50_eta0_cfg12", 50, 0.0, 12.0, False),
        ("steps50_eta1_cfg12_seed", 50, 1.0, 12.0, False),
    ],
)
def test_ddim_matches_the_original(shared_pipe, model, trace, steps, eta, guidance, plain):
    with safe_open(DATA / f"{model}.safetensors", "pt") as file:
        meta = {name: json.loads(text) for name, text in file.metadata().items()}
        weights = {name.removeprefix("weights."): file.get_tensor(name).float() for name in file.keys() if name.startswith("weights.")}
        figures = {name.removeprefix("ddim."): file.get_tensor(name) for name in file.keys() if name.startswith("ddim.")}
    transformer = MiraTransformer3DModel.from_config({"text_spatial_cond": False} | meta["config"])
    transformer.load_state_dict(weights)
    schedule = {name: meta["ddim"][name] for name in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")}
    scheduler = MiraScheduler(**schedule, scale_b=1.0 if plain else meta["ddim"]["scale_b"], scale_mid_step=meta["ddim"]["mid_step"])
    pipe = MiraPipeline(transformer.eval(), shared_pipe.vae, scheduler)
    pipe.set_progress_bar_config(disable=True)
    noise = figures["latents_T"]
    _, _, num_frames, height, width = noise.shape
    result = pipe(
        prompt_embeds=figures["cond"], negative_prompt_embeds=figures["uncond"], latents=noise, generator=torch.Generator().manual_seed(7),
        height=8 * height, width=8 * width, num_frames=num_frames, fps=meta["ddim"]["fps"], num_inference_steps=steps, guidance_scale=guidance, eta=eta, sampler="ddim", output_type="latent",
    ).frames
    assert (result - figures[trace]).abs().max() / figures[trace].abs().max() < 1e-3


# --- seeds and batches ---


def test_same_seed_same_video_and_everything_asked_for_matters(shared_pipe):
    pipe = shared_pipe
    first = latents_of(pipe)
    assert first.shape == (1, 4, 3, 4, 6) and first.dtype == torch.float32
    assert torch.equal(first, latents_of(pipe))
    changes = [dict(seed=6), dict(prompt=OTHER), dict(fps=12), dict(guidance_scale=5.0), dict(guidance_stop=0.5), dict(guidance_stop=0.5, late_guidance_scale=2.0), dict(temporal_guidance_scale=1.0), dict(negative_prompt="a green star"), dict(eta=0.5), dict(sampler="heun"), dict(num_inference_steps=4)]
    for change in changes:
        assert not torch.allclose(first, latents_of(pipe, **change), atol=1e-4), change


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batch_items_equal_single_runs(shared_pipe, sampler):
    single = torch.cat([latents_of(shared_pipe, p, seed, sampler=sampler) for p, seed in ((PROMPT, 5), (OTHER, 6))])
    together = latents_of(shared_pipe, [PROMPT, OTHER], 5, sampler=sampler)
    torch.testing.assert_close(together, single, atol=1e-4, rtol=1e-4)
    swapped = latents_of(shared_pipe, [OTHER, PROMPT], [6, 5], sampler=sampler)
    torch.testing.assert_close(swapped, single.flip(0), atol=1e-4, rtol=1e-4)


def test_numbers_of_numpy_are_numbers(shared_pipe):
    numpys = dict(height=np.int64(32), width=np.int16(48), num_frames=3.0, num_inference_steps=np.uint8(3), guidance_scale=np.float32(3.0), eta=np.int32(1))
    assert torch.equal(latents_of(shared_pipe, seed=np.int64(5), **numpys), latents_of(shared_pipe))
    assert torch.equal(latents_of(shared_pipe, seed=np.array([5])), latents_of(shared_pipe))
    request = GenerationRequest(PROMPT, seed=np.int64(5), **numpys).resolved()
    assert json.loads(json.dumps(request.to_dict())) == GenerationRequest(PROMPT, seed=5, **(SMALL | dict(fps=None, sampler=None))).resolved().to_dict()


def test_generator_and_latents_in_place_of_a_seed(shared_pipe):
    by_seed = latents_of(shared_pipe, seed=5)
    by_generator = latents_of(shared_pipe, seed=None, generator=torch.Generator().manual_seed(5))
    assert torch.equal(by_seed, by_generator)
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(1, 4, 3, 4, 6, generator=generator)
    assert torch.equal(by_seed, latents_of(shared_pipe, seed=None, generator=generator, latents=noise))
    assert not torch.equal(latents_of(shared_pipe, seed=None), latents_of(shared_pipe, seed=None))


def test_global_random_state_is_left_alone(shared_pipe):
    torch.manual_seed(1)
    expected = torch.randn(3)
    torch.manual_seed(1)
    latents_of(shared_pipe, seed=None)
    assert torch.equal(torch.randn(3), expected)


# --- guidance ---


class Counting(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.batches = inner, []

    def __getattr__(self, name):
        return super().__getattr__(name) if name in ("inner", "_modules") else getattr(super().__getattr__("inner"), name)

    def forward(self, **inputs):
        self.batches.append(len(inputs["hidden_states"]))
        return self.inner(**inputs)


@pytest.mark.parametrize("guidance_scale, expected", [(1.0, 2), (4.0, 4), (0.0, 4)])
def test_guidance_is_one_forward_and_none_without_it(guidance_scale, expected):
    pipe = tiny_pipeline()
    pipe.transformer = Counting(pipe.transformer)
    latents_of(pipe, [PROMPT, OTHER], guidance_scale=guidance_scale)
    assert pipe.transformer.batches == [expected] * 3


def test_guidance_interpolates(shared_pipe):
    """With one ddim step to x_0 the result is linear in the guidance scale (arXiv:2207.12598, eq. 6)."""
    one = dict(num_inference_steps=1, eta=0.0)
    at = [latents_of(shared_pipe, guidance_scale=g, **one) for g in (0.0, 1.0, 3.0)]
    torch.testing.assert_close(at[2], at[0] + 3 * (at[1] - at[0]), atol=1e-3, rtol=1e-3)


def test_temporal_guidance_adds_what_frames_change_in_each_other():
    """With one ddim step to x_0 the result is linear in the predictions: guidance, and the scale times together less apart."""
    pipe, one = tiny_pipeline(), dict(num_inference_steps=1, eta=0.0)
    at = [latents_of(pipe, temporal_guidance_scale=scale, **one) for scale in (0.0, 5.0, 10.0)]
    torch.testing.assert_close(at[2], at[0] + 2 * (at[1] - at[0]), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(at[0], latents_of(pipe, **one), atol=0, rtol=0)  # a model without a preset of its own has none
    together = latents_of(pipe, guidance_scale=1.0, **one)
    inner = pipe.transformer.forward
    pipe.transformer.forward = lambda *args, **kwargs: inner(*args, **{**kwargs, "frames_apart": True})
    apart = latents_of(pipe, guidance_scale=1.0, **one)
    assert (together - apart).abs().max() > 0.01
    torch.testing.assert_close(at[2] - at[0], 10 * (together - apart), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("quality, guidance_scale, expected", [("quality", 4.0, [4, 2] * 5 + [4] * 5), ("quality", 1.0, [2, 2] * 5 + [2] * 5), ("fast", 4.0, [4, 2] * 5 + [4] + [2] * 4), ("quality", 0.0, [4] * 10)])
def test_temporal_guidance_is_one_forward_more_in_the_noisier_half(quality, guidance_scale, expected):
    pipe = tiny_pipeline()
    pipe.transformer = Counting(pipe.transformer)
    asked = dict(temporal_guidance_scale=1.0, guidance_scale=guidance_scale, guidance_stop=1.0, quality=quality, num_inference_steps=10)
    latents_of(pipe, [PROMPT, OTHER], **asked)
    assert pipe.transformer.batches == expected
    request = GenerationRequest(PROMPT, **asked).resolved()
    assert predictions_per_step(request) == pytest.approx(sum(expected) / 2 / 10)


@pytest.mark.parametrize("quality, stop, late, expected", [("quality", 0.3, 1.0, [4] * 3 + [2] * 7), ("fast", 0.9, 1.0, [4] * 6 + [2] * 4), ("fast", 0.3, 1.5, [4] * 6 + [2] * 4), ("quality", 0.3, 1.5, [4] * 10), ("quality", 0.0, 1.0, [2] * 10)])
def test_the_prompt_guides_up_to_where_guidance_stops(quality, stop, late, expected):
    pipe = tiny_pipeline()
    pipe.transformer = Counting(pipe.transformer)
    asked = dict(guidance_scale=4.0, guidance_stop=stop, late_guidance_scale=late, temporal_guidance_scale=0.0, quality=quality, num_inference_steps=10)
    made = latents_of(pipe, [PROMPT, OTHER], **asked)
    assert pipe.transformer.batches == expected
    assert predictions_per_step(GenerationRequest(PROMPT, **asked).resolved()) == pytest.approx(sum(expected) / 2 / 10)
    if stop == 0:
        torch.testing.assert_close(made, latents_of(pipe, [PROMPT, OTHER], **asked | {"guidance_scale": 1.0}))


def test_a_clip_that_is_changed_is_guided_in_the_same_share_of_its_own_steps():
    pipe = tiny_pipeline()
    pipe.transformer = Counting(pipe.transformer)
    start = latents_of(pipe, num_inference_steps=1)
    pipe.transformer.batches.clear()
    latents_of(pipe, num_inference_steps=10, guidance_scale=4.0, guidance_stop=0.5, start_latents=start, strength=0.6)
    assert pipe.transformer.batches == [2] * 3 + [1] * 3


def test_guidance_falls_and_never_rises():
    scales = lambda step, **asked: scales_at(GenerationRequest(PROMPT, guidance_stop=0.5, **asked).resolved(), step, 10).prompt  # noqa: E731
    assert [scales(step, guidance_scale=3.0, late_guidance_scale=1.5) for step in (0, 4, 5, 9)] == [3.0, 3.0, 1.5, 1.5]
    assert [scales(step, guidance_scale=1.2, late_guidance_scale=1.5) for step in (0, 9)] == [1.2, 1.2]
    assert [scales(step, guidance_scale=1.0, late_guidance_scale=1.5) for step in (0, 9)] == [1.0, 1.0], "1 turns it off, throughout"
    assert [scales(step, guidance_scale=0.0, late_guidance_scale=1.5) for step in (0, 9)] == [0.0, 0.0]


def test_prompt_embeds_equal_the_prompt(shared_pipe):
    embeds, negative = shared_pipe.encode_prompt([PROMPT]), shared_pipe.encode_prompt([""])
    given = latents_of(shared_pipe, None, prompt_embeds=embeds, negative_prompt_embeds=negative)
    torch.testing.assert_close(given, latents_of(shared_pipe))
    two = latents_of(shared_pipe, None, prompt_embeds=embeds.repeat(2, 1, 1), negative_prompt_embeds=negative)
    torch.testing.assert_close(two[:1], given, atol=1e-4, rtol=1e-4)


# --- output ---


def test_output_types(shared_pipe):
    video = {kind: shared_pipe([PROMPT, OTHER], seed=1, output_type=kind, **SMALL).frames for kind in ("np", "pt", "pil")}
    assert video["np"].shape == (2, 3, 32, 48, 3) and video["np"].dtype == np.float32
    assert 0 <= video["np"].min() and video["np"].max() <= 1 and video["np"].std() > 0.01
    assert np.array_equal(video["pt"].numpy(), video["np"])
    assert isinstance(video["pil"][1][2], Image.Image) and video["pil"][1][2].size == (48, 32)
    assert isinstance(shared_pipe(PROMPT, return_dict=False, seed=1, **SMALL), tuple)


def test_decoding_in_chunks_is_passed_on(shared_pipe):
    whole = shared_pipe(PROMPT, seed=1, **SMALL).frames
    chunked = shared_pipe(PROMPT, seed=1, decode_chunk_frames=1, **SMALL).frames
    assert chunked.shape == whole.shape and not np.allclose(chunked, whole, atol=1e-4)


def test_generate_is_the_same_with_one_object(shared_pipe):
    request = GenerationRequest(PROMPT, seed=9, **SMALL)
    assert np.array_equal(shared_pipe.generate(request).frames, shared_pipe(PROMPT, seed=9, **SMALL).frames)


# --- progress and cancelling ---


@pytest.mark.parametrize("sampler, evaluations", [("ddim", 3), ("heun", 5)])
def test_callback_sees_every_step(shared_pipe, sampler, evaluations):
    seen = []

    def callback(pipe, step, timestep, report):
        assert pipe is shared_pipe and report["num_steps"] == evaluations
        frames = report["preview"]()
        assert frames.shape == (1, 3, 4, 6, 3) and frames.dtype == np.uint8
        seen.append((step, timestep, report["latents"].clone()))

    result = latents_of(shared_pipe, sampler=sampler, callback_on_step_end=callback)
    assert [step for step, *_ in seen] == list(range(evaluations))
    assert all(a >= b for (_, a, _), (_, b, _) in zip(seen, seen[1:]))
    assert torch.equal(seen[-1][2], result)


def test_without_a_latent_map_there_is_no_preview(shared_pipe):
    pipe = MiraPipeline(shared_pipe.transformer, shared_pipe.vae, shared_pipe.scheduler, shared_pipe.text_encoder, shared_pipe.tokenizer)
    pipe.set_progress_bar_config(disable=True)
    previews = []
    latents_of(pipe, callback_on_step_end=lambda pipe, step, timestep, report: previews.append(report["preview"]))
    assert previews == [None] * 3


def test_cancel_between_steps(shared_pipe):
    steps = []

    def interrupting(pipe, step, timestep, report):
        steps.append(step)
        if step == 1:
            pipe.interrupt()

    with pytest.raises(GenerationCancelled, match="step 2 of 3"):
        latents_of(shared_pipe, callback_on_step_end=interrupting)
    assert steps == [0, 1]

    def raising(pipe, step, timestep, report):
        raise GenerationCancelled("by the callback")

    with pytest.raises(GenerationCancelled, match="by the callback"):
        latents_of(shared_pipe, callback_on_step_end=raising)
    assert torch.equal(latents_of(shared_pipe), latents_of(shared_pipe))  # and the pipeline goes on


# --- refusals ---


@pytest.mark.parametrize(
    "wrong, field",
    [
        (dict(height=30), "height"),
        (dict(num_frames=0), "num_frames"),
        (dict(num_inference_steps=10_000), "num_inference_steps"),
        (dict(guidance_scale=float("nan")), "guidance_scale"),
        (dict(eta=2.0), "eta"),
        (dict(guidance_stop=1.5), "guidance_stop"),
        (dict(late_guidance_scale=0.5), "late_guidance_scale"),
        (dict(temporal_guidance_scale=-1.0), "temporal_guidance_scale"),
        (dict(sampler="dpm2m"), "sampler"),
        (dict(prompt=""), "prompt"),
        (dict(prompt=[]), "prompt"),
        (dict(prompt=None), "prompt"),
        (dict(prompt=[PROMPT, "x" * 10_000]), "prompt"),
        (dict(prompt="half a \ud83c"), "prompt"),
        (dict(seed=-1), "seed"),
        (dict(seed=2**70), "seed"),
        (dict(seed=[1, 2]), "seed"),
        (dict(seed=1.5), "seed"),
        (dict(height="tall"), "height"),
        (dict(num_frames=float("inf")), "num_frames"),
        (dict(guidance_scale="7"), "guidance_scale"),
        (dict(quality=None), "quality"),
        (dict(negative_prompt=["a", "b"]), "negative_prompt"),
        (dict(latents=torch.zeros(1, 4, 3, 4, 5)), "latents"),
        (dict(prompt=None, prompt_embeds=torch.zeros(77, TEXT_DIM)), "prompt_embeds"),
        (dict(prompt=None, prompt_embeds=torch.zeros(1, 77, TEXT_DIM), negative_prompt_embeds=torch.zeros(1, 60, TEXT_DIM)), "negative_prompt_embeds"),
        (dict(prompt=None, prompt_embeds=torch.zeros(3, 77, TEXT_DIM), negative_prompt_embeds=torch.zeros(2, 77, TEXT_DIM)), "negative_prompt_embeds"),
        (dict(output_type="mp4"), "output_type"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_name(shared_pipe, wrong, field):
    with pytest.raises(RequestError) as error:
        shared_pipe(**(SMALL | dict(prompt=PROMPT, seed=0) | wrong))
    assert error.value.field == field


def test_nan_is_an_error_and_not_a_black_video():
    pipe = tiny_pipeline()
    next(pipe.transformer.parameters()).data.fill_(float("nan"))
    with pytest.raises(GenerationError, match=r"after step 1 of 3 .*float32"):
        latents_of(pipe)


def test_without_a_text_encoder(shared_pipe):
    pipe = MiraPipeline(shared_pipe.transformer, shared_pipe.vae, shared_pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="no text encoder"):
        latents_of(pipe)


# --- folders ---


@pytest.fixture(scope="module")
def folder(shared_pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-model")
    shared_pipe.save_pretrained(folder)
    return folder


def test_folder_layout(folder):
    index = json.loads((folder / "model_index.json").read_text())
    assert index["transformer"] == ["core", "MiraTransformer3DModel"] and index["scheduler"] == ["core", "MiraScheduler"]
    assert index["vae"] == ["diffusers", "AutoencoderKLTemporalDecoder"] and index["text_encoder"] == ["transformers", "T5EncoderModel"]
    weights = [p.suffix for p in folder.rglob("*") if p.stat().st_size > 10_000]
    assert ".safetensors" in weights and ".bin" not in weights


def test_round_trip(shared_pipe, folder):
    loaded = MiraPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.config.latent_rgb == shared_pipe.config.latent_rgb
    assert torch.equal(latents_of(loaded), latents_of(shared_pipe))


def test_a_folder_with_our_own_vae(shared_pipe, tmp_path):
    vae = TemporalVAE(block_out_channels=(32,) * 4, layers_per_block=1, norm_num_groups=8)
    MiraPipeline(shared_pipe.transformer, vae, shared_pipe.scheduler).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["vae"] == ["core", "TemporalVAE"]
    loaded = MiraPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.vae, TemporalVAE) and loaded.vae.config.norm_num_groups == 8
    assert loaded.text_encoder is None and loaded.config.latent_rgb is None


_FROM_ELSEWHERE = """
import sys
sys.path.insert(0, sys.argv[1])
from core import MiraPipeline
pipe = MiraPipeline.from_pretrained(sys.argv[2])
print(type(pipe.transformer).__name__, type(pipe.scheduler).__name__)
"""


def test_loads_from_any_working_folder(folder, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run([sys.executable, "-c", _FROM_ELSEWHERE, str(ROOT), str(folder)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert run.stdout.split() == ["MiraTransformer3DModel", "MiraScheduler"], run.stderr


def test_lazy_text_encoder_in_a_pipeline(shared_pipe, folder, tmp_path):
    lazy = MiraPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None)
    lazy.set_progress_bar_config(disable=True)
    lazy.lazy_text_encoder = LazyTextEncoder(folder, tmp_path / "prompts")
    torch.testing.assert_close(latents_of(lazy), latents_of(shared_pipe), atol=1e-4, rtol=1e-4)
    assert lazy.lazy_text_encoder.loaded

    lazy.lazy_text_encoder = LazyTextEncoder(folder, tmp_path / "prompts")  # as after a restart
    again = latents_of(lazy)
    assert not lazy.lazy_text_encoder.loaded  # the cache holds the prompt and ""
    lazy.save_pretrained(tmp_path / "copy")
    assert lazy.text_encoder is None
    copy = MiraPipeline.from_pretrained(tmp_path / "copy")
    copy.set_progress_bar_config(disable=True)
    torch.testing.assert_close(latents_of(copy), again, atol=1e-4, rtol=1e-4)


def opened(folder):
    pipe = MiraPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_folder_holds_the_model_without_its_loras_and_they_stay_on(folder, tmp_path):
    pipe = opened(folder)
    bare = latents_of(pipe)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "mine")
    pipe.transformer.save_lora_adapter(tmp_path, adapter_name="mine", weight_name="mine.safetensors")
    pipe.transformer.unload_lora()
    pipe.use_loras(f"{tmp_path / 'mine.safetensors'}")
    adapted = latents_of(pipe)
    assert not torch.equal(adapted, bare)
    pipe.save_pretrained(tmp_path / "copy")
    assert torch.equal(latents_of(pipe), adapted), "the LoRA is on again"
    assert torch.equal(latents_of(opened(tmp_path / "copy")), bare)


def test_adapters_of_ones_own_are_not_written_in_the_place_of_weights(folder, tmp_path):
    pipe = opened(folder)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "mine")
    adapted = latents_of(pipe)
    with pytest.raises(ValueError, match=r"adapters \(mine\).*fuse_lora.*unload_lora"):
        pipe.save_pretrained(tmp_path / "copy")
    pipe.transformer.fuse_lora()
    pipe.transformer.unload_lora()
    pipe.save_pretrained(tmp_path / "copy")
    torch.testing.assert_close(latents_of(opened(tmp_path / "copy")), adapted, atol=1e-3, rtol=1e-3)


def test_a_text_encoder_in_8_bits_is_saved_as_its_files_hold_it(folder, tmp_path):
    pipe = MiraPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None)
    pipe.lazy_text_encoder = LazyTextEncoder(folder, tmp_path / "prompts", eight_bits=True)
    pipe.encode_prompt(["a red ball"])
    pipe.save_pretrained(tmp_path / "copy")
    weights = [load_file(place / "text_encoder" / "model.safetensors") for place in (folder, tmp_path / "copy")]
    assert weights[0].keys() == weights[1].keys() and all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_bfloat16_runs_with_every_sampler(sampler, prediction_type):
    pipe = tiny_pipeline(prediction_type=prediction_type).to(dtype=torch.bfloat16)
    result = pipe(PROMPT, seed=1, output_type="pt", **(SMALL | dict(sampler=sampler))).frames
    assert result.dtype == torch.float32 and result.shape == (1, 3, 32, 48, 3)


def test_deterministic_samplers_agree_on_a_small_model():
    """They solve the same equation on a real network, too (with weights so small that the equation is not stiff)."""
    pipe = tiny_pipeline(prediction_type="v_prediction")
    for parameter in pipe.transformer.parameters():
        parameter.data.mul_(0.5)
    smooth = dict(guidance_scale=1.0, eta=0.0)
    truth = latents_of(pipe, num_inference_steps=1000, sampler="ddim", **smooth)
    for sampler in ("ddim", "euler", "dpm++2m", "unipc", "heun"):
        for steps, bound in ((20, 0.08), (80, 0.03)):
            result = latents_of(pipe, num_inference_steps=steps, sampler=sampler, **smooth)
            assert (result - truth).abs().mean() < bound * truth.abs().mean(), (sampler, steps)


def test_quality_is_every_step_in_full_and_the_others_spare_some(monkeypatch):
    pipe = tiny_pipeline(num_layers=3)
    plain = latents_of(pipe, num_inference_steps=10)
    assert torch.equal(latents_of(pipe, num_inference_steps=10, quality="quality"), plain)
    pipe.transformer = Counting(pipe.transformer)
    layers = []
    block = pipe.transformer.inner.transformer_blocks[2]
    monkeypatch.setattr(block, "forward", lambda *inputs, forward=block.forward: layers.append(1) or forward(*inputs))
    monkeypatch.setitem(QUALITIES, "fast", Quality("Fast", 10.0, 0.5))
    fast = latents_of(pipe, num_inference_steps=10, quality="fast")
    assert pipe.transformer.batches == [2] * 5 + [1] * 5  # guided in the first half
    assert len(layers) == 2 and torch.isfinite(fast).all() and not torch.equal(fast, plain)  # one full step for each of the two batch sizes
    with pytest.raises(RequestError, match="Did you mean 'fast'"):
        GenerationRequest(PROMPT, quality="fsat").resolved()
