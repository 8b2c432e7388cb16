"""Models that are found, downloaded and loaded, and what is said when something is missing."""

import argparse
import hashlib
import json
import shutil

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import GB, disk_with, layout, save_tiny_model, saved, tiny_text_encoder, tiny_tokenizer

from core import MiraPipeline, MiraTransformer3DModel, checkpoints, load_pipeline
from core.checkpoints import CheckpointError
from core.convert import SOURCE_FILE
from core.device import ResourceError
from core.originals import Architecture
from core.releases import RELEASES, TEXT_ENCODER, Release, folder_name
from core.vae import build_mira_vae


def test_a_download_that_does_not_fit_is_not_started(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: argparse.Namespace(size=11 * GB, etag="a"))
    monkeypatch.setattr(huggingface_hub.file_download, "http_get", lambda *_, **__: pytest.fail("downloading has begun"))
    monkeypatch.setattr(shutil, "disk_usage", disk_with(20 * GB))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: argparse.Namespace(available=100 * GB))
    with pytest.raises(ResourceError, match="22.0 GB on disk and .* has 20.0 GB free"):
        load_pipeline("TencentARC/Mira-v0:128", data_dir=tmp_path)


def test_too_little_memory_is_told_before_the_work(tmp_path, monkeypatch):
    save_tiny_model(tmp_path / "tiny")
    lazy = load_pipeline(tmp_path / "tiny", device="cpu", data_dir=tmp_path).lazy_text_encoder
    monkeypatch.setattr(psutil, "virtual_memory", lambda: argparse.Namespace(available=100))
    with pytest.raises(ResourceError, match="GB are free"):
        load_pipeline(tmp_path / "tiny", device="cpu")
    with pytest.raises(ResourceError, match="text encoder of tiny"):
        lazy(["a red ball"])


def test_a_release_that_cannot_fit_is_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "find_model", lambda *_: pytest.fail("downloading has begun"))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: argparse.Namespace(available=2 * GB))
    with pytest.raises(ResourceError, match=r"Mira-v0:128 in float32 takes 4\.\d GB of memory and 2.0 GB are free"):
        load_pipeline("TencentARC/Mira-v0:128", device="cpu", dtype="fp32", data_dir=tmp_path)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: argparse.Namespace(available=100 * GB))  # what is refused for memory is not looked for


@pytest.mark.parametrize("name", list(RELEASES))
def test_offline_a_release_says_what_to_get_from_where_and_where_to_put_it(name, tmp_path, offline):
    with pytest.raises(CheckpointError) as error:
        load_pipeline(name, data_dir=tmp_path)
    release = RELEASES[name]
    for words in (release.file, release.page, str(tmp_path / "models" / release.file), "GB"):
        assert words in str(error.value)


def test_offline_a_hub_id_says_where_the_folder_belongs(tmp_path, offline):
    with pytest.raises(CheckpointError) as error:
        load_pipeline("someone/their-mira", data_dir=tmp_path)
    assert "https://huggingface.co/someone/their-mira" in str(error.value) and str(tmp_path / "models" / "someone--their-mira") in str(error.value)


def test_a_release_that_was_put_in_place_is_converted_once(original, tmp_path, monkeypatch, offline):
    """The file under data_dir/models is found, converted and kept; its text encoder is shared; a second load reads the folders."""
    config, flat = original
    architecture = Architecture.of_yaml(config)
    monkeypatch.setattr("core.convert.build_mira_vae", lambda **_: build_mira_vae(**architecture.vae))
    models = tmp_path / "models"
    models.mkdir()
    for name, file in (("TencentARC/Tiny:1", "tiny-1.pt"), ("TencentARC/Tiny:2", "tiny-2.pt")):
        monkeypatch.setitem(RELEASES, name, Release(name, "TencentARC/Tiny", file, 0.001, architecture.transformer))
        source = saved(models, layout("module", flat), file)
        with pytest.raises(CheckpointError, match="tokenizer"):
            load_pipeline(name, device="cpu", data_dir=tmp_path)
        assert load_pipeline(name, device="cpu", text_encoder=False, data_dir=tmp_path).transformer.config.num_layers == 2
        assert source.exists(), "what the user put there stays"
        source.unlink()
    shared = models / folder_name(TEXT_ENCODER)
    assert sorted(p.parent for p in models.glob("*/text_encoder")) == [shared]
    tiny_tokenizer().save_pretrained(shared / "tokenizer")
    for name in ("TencentARC/Tiny:1", "TencentARC/Tiny:2"):
        assert load_pipeline(name, device="cpu", data_dir=tmp_path).lazy_text_encoder.folder == shared
    tiny_text_encoder().save_pretrained(shared / "text_encoder")
    embeds = load_pipeline(name, device="cpu", dtype="fp32", data_dir=tmp_path).lazy_text_encoder(["a red ball"])
    shutil.rmtree(shared)  # nor is it downloaded again for prompts that are known
    lazy = load_pipeline(name, device="cpu", dtype="fp32", data_dir=tmp_path).lazy_text_encoder
    assert torch.equal(lazy(["a red ball"]), embeds)
    with pytest.raises(CheckpointError, match="could not be downloaded"):
        lazy(["something new"])


def test_a_download_is_converted_and_removed(original, tmp_path, monkeypatch):
    import huggingface_hub

    config, flat = original
    architecture = Architecture.of_yaml(config)
    monkeypatch.setattr("core.convert.build_mira_vae", lambda **_: build_mira_vae(**architecture.vae))
    monkeypatch.setitem(RELEASES, "TencentARC/Tiny:1", Release("TencentARC/Tiny:1", "TencentARC/Tiny", "tiny-1.pt", 0.001, architecture.transformer))

    content = saved(tmp_path, layout("state_dict", flat)).read_bytes()

    def download(url, file, resume_size, expected_size, **_):
        assert url.endswith("/TencentARC/Tiny/resolve/main/tiny-1.pt") and resume_size == file.tell() and expected_size == len(content)
        file.write(content[resume_size:])

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: argparse.Namespace(size=len(content), etag=hashlib.sha256(content).hexdigest()))
    monkeypatch.setattr(huggingface_hub.file_download, "http_get", download)
    part = tmp_path / "models" / "downloads" / f"tiny-1.pt.{hashlib.sha256(content).hexdigest()[:16]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    with pytest.raises(CheckpointError, match="damaged: its SHA-256"):
        load_pipeline("TencentARC/Tiny:1", device="cpu", text_encoder=False, data_dir=tmp_path)
    part.write_bytes(content[:1000])
    load_pipeline("TencentARC/Tiny:1", device="cpu", text_encoder=False, data_dir=tmp_path)
    assert not list((tmp_path / "models" / "downloads").iterdir())


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The Hub as far as downloads need it: the folder of a repository under ``there``, served a kilobyte at a time, of which the bar hears; names of what was asked for from where on."""
    import huggingface_hub

    asked = []
    repository = lambda repo: tmp_path / "there" / repo.replace("/", "--")  # noqa: E731
    content = lambda url: (repository(url.split("/resolve/")[0].split("/", 3)[3]) / url.split("/resolve/main/")[1]).read_bytes()  # noqa: E731

    def tree(api, repo, recursive):
        paths = sorted(repository(repo).rglob("*"))
        return [argparse.Namespace(path=str(p.relative_to(repository(repo))), **({"size": p.stat().st_size} if p.is_file() else {})) for p in paths]

    def get(url, file, resume_size, expected_size, tqdm_class, **_):
        asked.append((url.split("/resolve/main/")[1], resume_size))
        bar = tqdm_class(total=expected_size, initial=resume_size) if tqdm_class else None
        for start in range(resume_size, expected_size, 1024):
            file.write(content(url)[start : start + 1024])
            if bar is not None:
                bar.update(1024)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache of the hub"))
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_tree", tree)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: argparse.Namespace(size=len(content(url)), etag=hashlib.sha256(content(url)).hexdigest()))
    monkeypatch.setattr(huggingface_hub.file_download, "http_get", get)
    return asked


class Stop(Exception):
    """Whoever waits has cancelled."""


def stopping(words, file, after=2000):
    def tell(what, done, of):
        words.append(what)
        if file in what and done > after:
            raise Stop

    return tell


def test_a_model_folder_of_the_hub_appears_whole_and_goes_on_where_it_stopped(tmp_path, hub):
    there, target = save_tiny_model(tmp_path / "there" / "someone--model"), tmp_path / "models" / "someone--model"
    (there / "pickled.bin").write_bytes(b"never")
    (tmp_path / "there" / "someone--else").mkdir()
    (tmp_path / "there" / "TencentARC--Mira-v0").mkdir()
    for name, words in (("someone/else", "no model_index.json.$"), ("TencentARC/Mira-v0", "no model_index.json. Did you mean 'TencentARC/Mira-v0:")):
        with pytest.raises(CheckpointError, match=words):
            load_pipeline(name, data_dir=tmp_path)
    words = []
    with pytest.raises(Stop):
        load_pipeline("someone/model", data_dir=tmp_path, tell=stopping(words, "transformer/diffusion_pytorch_model.safetensors"))
    assert not target.exists() and "Downloading model_index.json" in words
    before = len(hub)
    assert isinstance(load_pipeline("someone/model", device="cpu", data_dir=tmp_path), MiraPipeline)
    again = hub[before:]
    assert {file.relative_to(target).as_posix() for file in target.rglob("*") if file.is_file()} == {name for name, _ in hub} and "pickled.bin" not in dict(hub)
    assert dict(again)["transformer/diffusion_pytorch_model.safetensors"] > 2000 and "model_index.json" not in dict(again), "what was here is not fetched again"


def test_the_text_encoder_of_the_hub_is_kept_in_bf16_and_goes_on_where_it_stopped(tmp_path, hub, monkeypatch):
    there, folder = save_tiny_model(tmp_path / "there" / "whole"), tmp_path / "there" / TEXT_ENCODER.replace("/", "--")
    shutil.copytree(there / "text_encoder", folder)
    shutil.copytree(there / "tokenizer", folder, dirs_exist_ok=True)
    model = save_tiny_model(tmp_path / "model")
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(model / part)
    (model / SOURCE_FILE).write_text(json.dumps({"text_encoder": TEXT_ENCODER}))
    monkeypatch.setattr("core.checkpoints.TEXT_ENCODER_BYTES", 1000)
    with pytest.raises(Stop):
        load_pipeline(model, device="cpu", data_dir=tmp_path, tell=stopping([], "model.safetensors"))
    pipe = load_pipeline(model, device="cpu", dtype="fp32", data_dir=tmp_path, tell=lambda *_: None)
    starts = [start for name, start in hub if name == "model.safetensors"]
    assert len(starts) == 2 and starts[0] == 0 and starts[1] > 2000
    kept, before = pipe.lazy_text_encoder(["a red ball"]), load_pipeline(there, device="cpu", dtype="fp32", data_dir=tmp_path).lazy_text_encoder(["a red ball"])
    assert 0 < (kept - before).abs().max() < 0.05 * before.abs().max(), "as bf16 rounds it"
    assert not list((tmp_path / "models" / "downloads").iterdir())
    before = len(hub)
    shutil.rmtree(tmp_path / "models")
    snapshot = tmp_path / "cache of the hub" / f"models--{TEXT_ENCODER.replace('/', '--')}" / "snapshots" / "0a1b"
    shutil.copytree(folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0a1b")
    load_pipeline(model, device="cpu", dtype="fp32", data_dir=tmp_path).lazy_text_encoder(["something new"])
    assert (tmp_path / "models" / folder_name(TEXT_ENCODER) / "text_encoder").is_dir() and len(hub) == before, "another program had put it into the Hub's cache"


def test_names_that_mean_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="Did you mean 'mira-nano'"):
        load_pipeline("mira-nan0", data_dir=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="model_index.json"):
        load_pipeline(tmp_path / "empty", data_dir=tmp_path)


def test_a_model_folder_that_is_not_whole(tmp_path):
    folder = save_tiny_model(tmp_path / "tiny")
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(CheckpointError, match="lacks tokenizer/"):
        load_pipeline(folder, device="cpu")
    weights = next((folder / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged .1,000 bytes"):
        load_pipeline(folder, device="cpu", text_encoder=False)
    weights.unlink()
    with pytest.raises(CheckpointError, match="transformer/ must hold .* and holds config.json"):
        load_pipeline(folder, device="cpu", text_encoder=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def without_a_tensor(part):
    """Take one out of the part's weights."""
    file = next(part.glob("*.safetensors"))
    tensors = load_file(file)
    del tensors[min(name for name in tensors if name.endswith("weight"))]
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / "model_index.json").write_text(""), "model_index.json"),
        (lambda folder: (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}'), "expected"),
        (lambda folder: (folder / "transformer" / "config.json").write_text("{"), "transformer/config.json"),
        (lambda folder: (folder / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKLTemporalDecoder", "block_out_channels": 3}'), "not a whole model folder"),
        (lambda folder: shutil.rmtree(folder / "scheduler"), "scheduler_config.json"),
        (lambda folder: without_a_tensor(folder / "transformer"), "transformer lacks tensors.*adaln_single"),
        (lambda folder: without_a_tensor(folder / "vae"), "vae lacks tensors.*decoder"),
    ],
)
def test_a_folder_with_parts_that_do_not_fit_is_refused_in_words(tiny, tmp_path, damage, message):
    folder = shutil.copytree(tiny, tmp_path / "damaged")
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as error:
        load_pipeline(folder, device="cpu", dtype="bf16", data_dir=tmp_path)
    assert "Copy or download it again." in str(error.value)
    assert torch.get_default_dtype() == torch.float32, "what is made next is not in bf16 by accident"


@pytest.mark.parametrize("damage", [without_a_tensor, lambda part: next(part.glob("*.safetensors")).unlink(), lambda part: (part / "config.json").write_text("{")])
def test_a_text_encoder_that_is_not_whole_encodes_nothing(tiny, tmp_path, damage):
    """transformers fills what is missing with random numbers, which the cache of prompts would keep for good."""
    folder = shutil.copytree(tiny, tmp_path / "damaged")
    damage(folder / "text_encoder")
    pipe = load_pipeline(folder, device="cpu", dtype="fp32", data_dir=tmp_path)
    with pytest.raises(CheckpointError, match="text_encoder|text encoder"):
        pipe.encode_prompt(["a red ball"])
    assert not list((tmp_path / "cache" / "prompts").glob("*.safetensors"))


def test_a_tiny_folder_loads_and_makes_a_video(tmp_path):
    save_tiny_model(tmp_path / "tiny")
    pipe = load_pipeline(tmp_path / "tiny", device="cpu", dtype="fp32", data_dir=tmp_path)
    pipe.set_progress_bar_config(disable=True)
    frames = pipe("a red ball", height=16, width=32, num_frames=2, num_inference_steps=2, seed=1).frames
    assert frames.shape == (1, 2, 16, 32, 3)
    assert list((tmp_path / "cache" / "prompts").glob("*.safetensors"))


def test_the_embedded_folder_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checkpoints.EMBEDDED.parent.name == "assets" and checkpoints.EMBEDDED.is_absolute()


def test_what_a_cached_prompt_needs_in_memory_is_at_most_2_6_gb():
    """Weights of Mira-v0 in bf16, counted on the meta device."""
    with torch.device("meta"):
        parts = [MiraTransformer3DModel(), build_mira_vae()]
    assert sum(2 * p.numel() for part in parts for p in part.parameters()) <= 2.6e9
