"""The command ``python -m core.generate`` on a tiny random model."""

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import save_tiny_model

import core
import core.pipeline as pipeline_module
from core.compute import Compute, add_arguments, from_arguments
from core.field_docs import field_docs
from core.generate import build_parser, main, output_paths, requests_of, slug
from core.types import MAX_SEED, GenerationRequest, RequestError
from core.video_io import probe, read_settings

ROOT = Path(__file__).parents[2]
FAST = "--height 32 --width 48 --num-frames 3 --num-inference-steps 2 --guidance-scale 2 --output-fps 6".split()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def generate(model, tmp_path, capsys):
    """Run the command in this process; gives (exit status, stdout, stderr)."""

    def run(*arguments: str):
        try:
            status = main([*arguments, "--model", model, "--device", "cpu", "--dtype", "fp32", "--data-dir", str(tmp_path / "data"), *FAST])
        except SystemExit as error:
            status = error.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def requests(*arguments: str) -> list[GenerationRequest]:
    return requests_of(build_parser().parse_args([*arguments, "--out", "x"]))


def test_every_field_of_a_request_is_a_flag_with_its_documentation():
    text = " ".join(build_parser().format_help().split())
    docs = field_docs(GenerationRequest)
    for field in dataclasses.fields(GenerationRequest):
        assert field.name in docs
        if field.name != "prompt":
            assert f"--{field.name.replace('_', '-')}" in text
    values = dict(negative_prompt="n", model="m", preset="nano-2s", height=64, width=96, num_frames=5, fps=7, output_fps=9, num_inference_steps=11, guidance_scale=2.5, guidance_stop=0.4, late_guidance_scale=1.5, temporal_guidance_scale=0.5, eta=0.5, sampler="heun", seed=3, decode_chunk_frames=10)
    flags = [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    (request,) = requests("p", *flags)
    assert request == GenerationRequest("p", **values)


def test_seeds_count_up_from_one_base(tmp_path):
    assert [r.seed for r in requests("a", "b", "c", "--seed", "7")] == [7, 8, 9]
    drawn = [r.seed for r in requests("a", "b", "c")]
    assert [seed - drawn[0] for seed in drawn] == [0, 1, 2]
    with pytest.raises(RequestError, match="at most"):
        requests("a", "b", "--seed", str(MAX_SEED))


def test_prompt_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa red ball\n\n  кот 🎈 \n", "utf-8")
    assert [r.prompt for r in requests("first", "--prompt-file", str(file))] == ["first", "a red ball", "кот 🎈"]


def test_names_sort_in_prompt_order():
    many = [GenerationRequest(f"Prompt no. {i}: ÀB/../c", seed=i) for i in range(12)]
    paths = output_paths("videos", None, many)
    assert paths == sorted(paths) and len(set(paths)) == 12
    assert paths[3] == Path("videos/0003-prompt-no-3-ab-c-seed3.mp4")
    assert output_paths("videos", "gif", many)[0].suffix == ".gif" and output_paths("videos", "png", many)[0].suffix == ""
    assert slug("🎈🎈") == "video" and len(slug("word " * 100)) <= 48


def test_one_file(generate, tmp_path, model):
    out = tmp_path / "clip.mp4"
    status, stdout, stderr = generate("a small red ball", "--out", str(out), "--seed", "4")
    assert status == 0 and stdout.startswith(str(out)) and len(stdout.splitlines()) == 1
    assert GenerationRequest.from_dict(read_settings(out)) == requests("a small red ball", "--model", model, "--seed", "4", *FAST)[0]
    facts = probe(out)
    assert (facts["width"], facts["height"], facts["num_frames"], facts["fps"]) == (48, 32, 3, 6.0)


def test_a_folder_as_json_and_the_batch_size_changes_nothing(generate, tmp_path):
    prompts = ["a small red ball", "a big blue box", "a green star rises"]
    results = {}
    for batch_size in ("1", "2"):
        folder = tmp_path / batch_size
        status, stdout, _ = generate(*prompts, "--out", str(folder), "--seed", "4", "--batch-size", batch_size, "--json", "--format", "png")
        lines = [json.loads(line) for line in stdout.splitlines()]
        assert status == 0 and [line["request"]["prompt"] for line in lines] == prompts
        paths = [Path(line["path"]) for line in lines]
        assert sorted(folder.iterdir()) == paths and [read_settings(p)["seed"] for p in paths] == [4, 5, 6]
        results[batch_size] = [(p / "frame_0002.png").stat().st_size for p in paths]
    assert results["1"] == pytest.approx(results["2"], rel=0.02)


@pytest.mark.parametrize("name", ["clip.gif", "clip.png"])
def test_other_formats_by_suffix(generate, tmp_path, name):
    status, stdout, _ = generate("a star", "--out", str(tmp_path / name), "--json")
    path = Path(json.loads(stdout)["path"])
    assert status == 0 and path.exists() and read_settings(path)["prompt"] == "a star"
    assert path.is_dir() == (name == "clip.png")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--out", "clip.mp4"], "No prompt"),
        (["", "--out", "clip.mp4"], "prompt is empty"),
        (["x" * 10_000, "--out", "clip.mp4"], "10,000 characters"),
        (["a"], "--out"),
        (["a", "b", "--out", "clip.mp4"], "2 prompts"),
        (["a", "--out", "clip.avi"], "'avi'"),
        (["a", "--out", "clip.mp4", "--format", "gif"], "do not agree"),
        (["a", "--out", "clip.mp4", "--seed", "-1"], "seed is -1"),
        (["a", "--out", "clip.mp4", "--seed", "x"], "--seed"),
        (["a", "--out", "clip.mp4", "--preset", "nano-5s"], "Did you mean"),
        (["a", "--out", "clip.mp4", "--batch-size", "0"], "batch-size"),
        (["a", "--out", "clip.mp4", "--eta", "nan"], "eta is nan"),
        (["a", "--out", "clip.mp4", "--prompt-file", "no-such-file"], "No such file"),
        (["a", "--out", "blocked/clip.mp4"], "file stands where a folder"),
    ],
)
def test_bad_input_is_one_clear_line(generate, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blocked").write_text("a file")
    status, stdout, stderr = generate(*arguments)
    assert status == 2 and stdout == ""
    assert message in stderr and len(stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("clip*"))


def test_an_unknown_model_is_one_clear_line(tmp_path, capsys):
    status = main(["a star", "--out", str(tmp_path / "a.mp4"), "--model", str(tmp_path / "nothing"), "--data-dir", str(tmp_path)])
    error = capsys.readouterr().err
    assert status == 2 and "nothing" in error and "Traceback" not in error


def test_the_command_and_its_help_need_no_torch():
    code = "import sys; from core.generate import build_parser; build_parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_public_names_are_there_and_what_a_request_raises_needs_no_torch():
    assert all(getattr(core, name) for name in dir(core))
    code = "import sys; from core import GenerationCancelled, GenerationError, GenerationRequest, RequestError; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_how_the_machine_is_used_goes_from_one_command_line_to_another():
    """The studio hands its options to its workers so; all of them are on the System page."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for compute in (Compute(), Compute("xformers", True, 4, "cpu-8bit"), Compute(gpus_per_video=2)):
        assert from_arguments(parser.parse_args(compute.arguments())) == compute
    assert Compute().arguments() == [] and Compute("xformers", True, 4, "cpu").words == "xformers attention, compiled, 4 processes a video, text encoder cpu"
    with pytest.raises(ValueError, match="at least 1"):
        Compute(gpus_per_video=0)


def test_memory_that_runs_out_is_spared_and_in_the_end_told_in_words(generate, tmp_path, monkeypatch):
    decode, asked = pipeline_module.decode_latents, []

    def tight(vae, latents, chunk_frames=None):
        asked.append(chunk_frames)
        if chunk_frames != 1 or lacking:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
        return decode(vae, latents, chunk_frames=chunk_frames)

    lacking = False
    monkeypatch.setattr(pipeline_module, "decode_latents", tight)
    status, _, stderr = generate("A star.", "--out", str(tmp_path / "one.mp4"))
    assert status == 0 and asked[0] is None and asked[-1] == 1 and stderr.count("| 2/2") == 1, "no step is made twice"
    assert "decoding frame by frame" in read_settings(tmp_path / "one.mp4")["made_with"]["memory"]
    lacking = True
    status, _, stderr = generate("A star.", "--out", str(tmp_path / "two.mp4"))
    assert status == 1 and "There was not enough memory for 3 frames of 48×32" in stderr and not (tmp_path / "two.mp4").exists()


def test_a_long_clip_is_made_in_the_windows_of_the_models_long_presets_whoever_asks_for_it():
    asked = lambda model, frames, **more: GenerationRequest("a", model=model, num_frames=frames, **more).resolved()  # noqa: E731
    told = {frames: (asked("mira-nano", frames).preset, asked("mira-nano", frames).window_frames) for frames in (8, 24, 25, 120, 400)}
    assert told == {8: ("nano-4s", None), 24: ("nano-4s", None), 25: ("nano-10s", 24), 120: ("nano-20s", 24), 400: ("nano-60s", 24)}
    assert asked("TencentARC/Mira-v0:128", 120).window_frames is None and asked("TencentARC/Mira-v0:128", 121).window_frames == 120
    assert asked("mine", 120).window_frames is None and asked("mira-nano", 120, preset="nano-4s").window_frames is None and asked("mira-nano", 120, window_frames=60).window_frames == 60
