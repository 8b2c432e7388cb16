"""The ladder that is walked when memory runs out, and that what is spared changes nothing but by rounding."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import save_tiny_model, tiny_pipeline

from core import GenerationRequest, MiraPipeline, RequestError, device, load_pipeline
from core.device import MemoryShortage
from core.economy import Economy
from core.ladder import within_memory
from core.provenance import made_with
from core.text_encoder import LazyTextEncoder

REQUEST = GenerationRequest("a small red ball", num_frames=24, guidance_scale=3.0).resolved()
SMALL = dict(height=32, width=32, num_frames=4, num_inference_steps=2, guidance_scale=3.0, fps=6, sampler="ddim", seed=3)


def rungs(stage: str, device: str, request: GenerationRequest = REQUEST) -> list[str]:
    """What is spared at the end of each rung that comes last, in the order of the ladder."""
    found, economy = [], Economy()
    while (more := economy.more(stage, request, device, text_loaded=True)) is not None:
        found.append(next(words for words in more.words if words not in economy.words))
        economy = more
    return found


def test_the_ladder_begins_with_what_changes_nothing_and_ends() -> None:
    turns, unload, halves = "transformer and VAE on the device in turns", "the text encoder unloaded after use", "guidance in two passes"
    chunks = ["decoding 10 frames at a time", "decoding 4 frames at a time", "decoding frame by frame"]
    assert rungs("text", "cuda:0") == ["the text encoder on the CPU", turns] and rungs("text", "cpu") == []
    assert rungs("denoise", "cuda:0") == [unload, turns, halves] and rungs("denoise", "cpu") == [unload, halves]
    assert rungs("denoise", "cpu", REQUEST.replace(guidance_scale=1.0)) == [unload]
    assert rungs("decode", "cuda:0") == [unload, turns, *chunks] and rungs("decode", "cpu") == [unload, *chunks]
    assert rungs("decode", "cpu", REQUEST.replace(decode_chunk_frames=4)) == [unload, chunks[2]]


def test_what_killed_a_worker_is_spared_more_with_each_death() -> None:
    spared = [Economy().after_deaths(deaths, REQUEST).words for deaths in range(3)]
    assert spared == [[], ["the text encoder unloaded after use"], ["the text encoder unloaded after use", "guidance in two passes", "decoding 10 frames at a time"]]


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def test_the_text_encoder_is_where_it_is_asked_to_be(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "tiny")
    pipe = load_pipeline(folder, device="cpu", dtype="fp32", data_dir=tmp_path)
    pipe.set_progress_bar_config(disable=True)
    for place, prompt in (("device", "a red ball"), ("unload", "a blue ball"), ("cpu", "a green ball")):  # a prompt read before needs no encoder
        request = REQUEST.replace(prompt=prompt, text_placement=place, num_frames=2, height=16, width=16, num_inference_steps=1)
        pipe.spare(Economy.asked(request))
        pipe.generate(request, output_type="latent")
        assert pipe.lazy_text_encoder.loaded == (place != "unload") and Economy.asked(request).told(request) == {}
    with pytest.raises(RequestError, match="no place 'gpu' for the text encoder"):
        REQUEST.replace(text_placement="gpu").resolved()


@pytest.mark.parametrize("on_cpu", [10**9, 100])
def test_a_text_encoder_that_the_device_has_no_room_for_works_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_cpu: int) -> None:
    monkeypatch.setattr(device, "memory_available", lambda place: on_cpu if torch.device(place).type == "cpu" else 100)
    part = SimpleNamespace(device=torch.device("cuda:0"), to=lambda place: None)
    gpu = SimpleNamespace(transformer=part, vae=part, stage="text", _execution_device=part.device, execution_device=part.device)
    gpu.lazy_text_encoder = lazy = LazyTextEncoder(save_tiny_model(tmp_path / "tiny"), tmp_path, "cuda:0")
    gpu.spare = partial(MiraPipeline.spare, gpu)
    rungs: list[Economy] = []
    if on_cpu > 100:
        assert within_memory(gpu, REQUEST, lambda: lazy(["a red ball"]).device.type, Economy(), rungs.append) == "cpu"
        assert rungs == [Economy(text_on_cpu=True)]
    else:
        with pytest.raises(MemoryShortage, match=r"The text encoder of tiny takes .* free \(cpu\)"):
            within_memory(gpu, REQUEST, lambda: lazy(["a red ball"]), Economy(), rungs.append)


def test_guidance_in_two_passes_is_the_same_but_for_rounding(pipe) -> None:
    prompts = ["a small red ball", "a blue box"]
    batches = []
    handle = pipe.transformer.register_forward_pre_hook(lambda module, args, kwargs: batches.append(len(args[0] if args else kwargs["hidden_states"])), with_kwargs=True)
    whole = pipe(prompts, output_type="latent", **SMALL).frames
    pipe.spare(Economy(one_at_a_time=True))
    halves = pipe(prompts, output_type="latent", **SMALL).frames
    pipe.spare(Economy())
    handle.remove()
    assert batches == [4, 4, 2, 2, 2, 2]
    torch.testing.assert_close(halves, whole, rtol=1e-4, atol=1e-4)


def test_parts_take_turns_and_come_back(pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[tuple[str, str]] = []
    whole = pipe("a small red ball", output_type="pt", **SMALL).frames
    for name in ("transformer", "vae"):
        part = getattr(pipe, name)
        monkeypatch.setattr(part, "to", lambda place, name=name, to=part.to: moves.append((name, str(place))) or to(place))
    pipe.spare(Economy(turns_on="cpu:0"))  # stands in for a GPU
    assert torch.equal(pipe("a small red ball", output_type="pt", **SMALL).frames, whole)
    pipe.spare(Economy())
    text, denoise, decode = [("transformer", "cpu"), ("vae", "cpu")], [("vae", "cpu"), ("transformer", "cpu:0")], [("transformer", "cpu"), ("vae", "cpu:0")]
    assert moves == [*text, *denoise, *decode, ("transformer", "cpu:0"), ("vae", "cpu:0")]


def test_after_parts_took_turns_the_device_is_still_the_one_that_they_took_them_on(pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H200")
    rungs: list[Economy] = []

    def make() -> None:
        if not rungs:
            raise MemoryError

    pipe.spare(Economy(turns_on="cpu:0"))  # stands in for a GPU
    pipe.stage = "denoise"
    within_memory(pipe, REQUEST, make, Economy(), rungs.append)
    assert rungs == [Economy(turns_on="cpu:0")]
    monkeypatch.setattr(pipe, "economy", Economy(turns_on="cuda:0"))
    assert made_with(pipe)["device"] == "cuda (H200)"
    pipe.economy = Economy(turns_on="cpu:0")
    pipe.spare(Economy())
