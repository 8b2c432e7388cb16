"""Conversion of Mira's three layouts, loading, and what is said when something is missing."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open

from core import checkpoints, convert_checkpoint, load_pipeline
from core.checkpoints import CheckpointError, main
from core.convert import Architecture, read_tensors
from core.releases import RELEASES
from tiny import save_tiny_model

DATA = Path(__file__).parents[1] / "data"


def reference(name):
    """Weights, metadata and figures of a reference file."""
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}
        weights = {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}
        return weights, file.metadata(), tensors


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A Mira YAML and the flat tensors of a checkpoint that fits it."""
    folder = tmp_path_factory.mktemp("mira")
    network, metadata, _ = reference("transformer_v0")
    vae, vae_metadata, _ = reference("vae")
    params = {
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "timesteps": 1000,
        "use_scale": True,
        "scale_b": 0.7,
        "scale_factor": 0.18215,
        "denoiser_config": {"target": "os.system", "params": json.loads(metadata["config"])},
        "first_stage_config": {"target": "os.system", "params": json.loads(vae_metadata["config"])},
    }
    OmegaConf.save({"model": {"target": "os.system", "params": params}}, folder / "config.yaml")
    flat = {f"model.diffusion_model.{k}": v for k, v in network.items()} | {f"first_stage_model.{k}": v for k, v in vae.items()}
    flat["scale_arr"] = torch.ones(1000)
    return folder / "config.yaml", flat


def layout(kind, flat):
    """``flat`` as one of the three layouts."""
    if kind == "state_dict":
        return {"state_dict": flat, "epoch": 3}
    if kind == "module":
        return {"module": {f"_forward_module.{k}": v for k, v in flat.items()}}
    prefix = "model.diffusion_model."
    return {"ema": {k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)}}


@pytest.mark.parametrize("kind", ["state_dict", "module", "ema"])
def test_each_layout_gives_the_originals_result(kind, original, tmp_path):
    config, flat = original
    torch.save(layout(kind, flat), tmp_path / "mine.pt")
    options = {}
    if kind == "ema":
        with pytest.raises(CheckpointError, match="--vae"):
            convert_checkpoint(tmp_path / "mine.pt", tmp_path / "model", config)
        torch.save(layout("state_dict", flat), tmp_path / "whole.pt")
        options["vae"] = tmp_path / "whole.pt"
    convert_checkpoint(tmp_path / "mine.pt", tmp_path / "model", config, **options)

    pipe = load_pipeline(tmp_path / "model", device="cpu", dtype="fp32", text_encoder=False)
    _, _, figures = reference("transformer_v0")
    with torch.no_grad():
        sample = pipe.transformer(*(figures[f"forward.{k}"] for k in ("sample", "timestep", "encoder_hidden_states", "fps"))).sample
    assert (sample - figures["forward.output"]).abs().max() <= 1e-4 * figures["forward.output"].abs().max()
    _, _, vae_figures = reference("vae")
    with torch.no_grad():
        moments = pipe.vae.encode(vae_figures["encode.frames"]).latent_dist.parameters
    assert (moments - vae_figures["encode.moments"]).abs().max() <= 1e-3 * vae_figures["encode.moments"].abs().max()
    assert pipe.scheduler.config.scale_b == 0.7


def test_the_command_line(original, tmp_path, capsys):
    config, flat = original
    torch.save(layout("state_dict", flat), tmp_path / "mine.pt")
    assert main(["convert", str(tmp_path / "mine.pt"), str(tmp_path / "model"), "--config", str(config), "--dtype", "bf16"]) == 0
    assert load_pipeline(tmp_path / "model", device="cpu", text_encoder=False).transformer.config.num_layers == 2
    assert main(["convert", str(tmp_path / "absent.pt"), str(tmp_path / "other")]) == 2
    assert "absent.pt" in capsys.readouterr().err


def test_missing_and_left_over_tensors_are_named(original, tmp_path):
    config, flat = original
    flat = dict(flat)
    flat["model.diffusion_model.surprise"] = flat.pop("model.diffusion_model.proj_out.bias")
    torch.save(layout("state_dict", flat), tmp_path / "mine.pt")
    with pytest.raises(CheckpointError, match=r"missing: proj_out\.bias.*left over: surprise"):
        convert_checkpoint(tmp_path / "mine.pt", tmp_path / "model", config)
    assert not (tmp_path / "model").exists()


def test_tensors_that_belong_to_nothing_are_named(original, tmp_path):
    torch.save({"state_dict": {**original[1], "adapter.weight": torch.zeros(2)}}, tmp_path / "mine.pt")
    with pytest.raises(CheckpointError, match="adapter.weight"):
        read_tensors(tmp_path / "mine.pt")


class Malicious:
    def __reduce__(self):
        import os

        return os.system, ("touch /tmp/should-not-exist-mira",)


@pytest.mark.parametrize("content", ["cut off", "pickle", "list", "empty"])
def test_a_file_that_is_no_checkpoint_is_refused(content, original, tmp_path):
    path = tmp_path / "mine.pt"
    if content == "cut off":
        torch.save(layout("state_dict", original[1]), path)
        path.write_bytes(path.read_bytes()[:50_000])
    elif content == "pickle":
        path.write_bytes(pickle.dumps(Malicious()))
    elif content == "list":
        torch.save([1, 2], path)
    else:
        path.touch()
    with pytest.raises(CheckpointError, match="mine.pt"):
        read_tensors(path)
    assert not Path("/tmp/should-not-exist-mira").exists()


def test_a_yaml_of_something_else_is_refused(tmp_path, original):
    (tmp_path / "other.yaml").write_text("a: 1")
    with pytest.raises(CheckpointError, match="not one of Mira"):
        Architecture.of_yaml(tmp_path / "other.yaml")
    config = OmegaConf.load(original[0])
    config.model.params.denoiser_config.params.activation_fn = "geglu"
    OmegaConf.save(config, tmp_path / "geglu.yaml")
    with pytest.raises(CheckpointError, match="activation_fn"):
        Architecture.of_yaml(tmp_path / "geglu.yaml")


def test_a_name_that_is_not_released_asks_for_the_yaml(original, tmp_path):
    torch.save(layout("state_dict", original[1]), tmp_path / "mine.pt")
    with pytest.raises(CheckpointError, match="--config"):
        convert_checkpoint(tmp_path / "mine.pt", tmp_path / "model")


def test_a_full_disk_is_told_before_the_work(original, tmp_path, monkeypatch):
    torch.save(layout("state_dict", original[1]), tmp_path / "mine.pt")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(CheckpointError, match="0.0 GB free"):
        convert_checkpoint(tmp_path / "mine.pt", tmp_path / "model", original[0])
    with pytest.raises(CheckpointError, match="GB free"):
        load_pipeline("TencentARC/Mira-v0:128", data_dir=tmp_path)


def test_too_little_memory_is_told_before_the_work(tmp_path, monkeypatch):
    import psutil

    save_tiny_model(tmp_path / "tiny")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("M", (), {"available": 100})())
    with pytest.raises(CheckpointError, match="GB are free in memory"):
        load_pipeline(tmp_path / "tiny", device="cpu")


@pytest.mark.parametrize("name", list(RELEASES))
def test_offline_a_release_says_what_to_get_from_where_and_where_to_put_it(name, tmp_path, monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise huggingface_hub.errors.OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(CheckpointError) as error:
        load_pipeline(name, data_dir=tmp_path)
    release = RELEASES[name]
    for words in (release.file, release.page, str(tmp_path / "models" / release.file), "GB"):
        assert words in str(error.value)


def test_a_release_that_was_put_in_place_is_converted_once(original, tmp_path, monkeypatch):
    """The file under data_dir/models is found, converted and kept; the second load reads the folder."""
    from core.releases import Release

    config, flat = original
    architecture = Architecture.of_yaml(config)
    release = Release("TencentARC/Tiny:1", "TencentARC/Tiny-v1", "tiny-v1.pt", 0.001, architecture.transformer)
    monkeypatch.setitem(RELEASES, release.name, release)
    monkeypatch.setattr("core.convert.build_mira_vae", lambda **_: __import__("core.vae", fromlist=["vae"]).build_mira_vae(**architecture.vae))
    (tmp_path / "models").mkdir()
    torch.save(layout("state_dict", flat), tmp_path / "models" / "tiny-v1.pt")
    load_pipeline(release.name, device="cpu", text_encoder=False, data_dir=tmp_path)
    (tmp_path / "models" / "tiny-v1.pt").unlink()
    assert load_pipeline(release.name, device="cpu", text_encoder=False, data_dir=tmp_path).transformer.config.num_layers == 2


def test_names_that_mean_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="Did you mean 'mira-nano'"):
        load_pipeline("mira-nan0", data_dir=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="model_index.json"):
        load_pipeline(tmp_path / "empty", data_dir=tmp_path)


def test_a_tiny_folder_loads_and_makes_a_video(tmp_path):
    save_tiny_model(tmp_path / "tiny")
    pipe = load_pipeline(tmp_path / "tiny", device="cpu", dtype="fp32", data_dir=tmp_path)
    pipe.set_progress_bar_config(disable=True)
    frames = pipe("a red ball", height=16, width=32, num_frames=2, num_inference_steps=2, seed=1).frames
    assert frames.shape == (1, 2, 16, 32, 3)
    assert list((tmp_path / "prompt_cache").glob("*.safetensors"))


def test_the_embedded_folder_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checkpoints.EMBEDDED.parent.name == "assets" and checkpoints.EMBEDDED.is_absolute()
