"""Conversion of Mira's three layouts, loading, and what is said when something is missing."""

import argparse
import gzip
import hashlib
import json
import pickle
import shutil
from pathlib import Path

import psutil
import pytest
import torch
from omegaconf import OmegaConf
from tiny import original_checkpoint, reference, save_tiny_model, tiny_text_encoder, tiny_tokenizer

from core import MiraPipeline, MiraTransformer3DModel, checkpoints, convert, convert_checkpoint, load_pipeline
from core.checkpoints import CheckpointError, main
from core.convert import SOURCE_FILE
from core.device import ResourceError
from core.originals import Architecture, read_tensors
from core.releases import RELEASES, TEXT_ENCODER, Release, folder_name
from core.vae import build_mira_vae, original_vae_state_dict, preview_frames

DATA = Path(__file__).parents[1] / "data"
GB = 10**9


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return original_checkpoint(tmp_path_factory.mktemp("mira"))


def layout(kind, flat):
    """``flat`` as one of the three layouts."""
    if kind == "state_dict":
        return {"state_dict": flat, "epoch": 3}
    if kind == "module":
        return {"module": {f"_forward_module.{k}": v for k, v in flat.items()}}
    prefix = "model.diffusion_model."
    return {"ema": {k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)}}


def saved(folder, content, name="mine.pt"):
    torch.save(content, folder / name)
    return folder / name


@pytest.mark.parametrize("kind", ["state_dict", "module", "ema"])
def test_each_layout_gives_the_originals_result(kind, original, tmp_path):
    config, flat = original
    source = saved(tmp_path, layout(kind, flat))
    options = {}
    if kind == "ema":
        with pytest.raises(CheckpointError, match="--vae"):
            convert_checkpoint(source, tmp_path / "model", config)
        options["vae"] = saved(tmp_path, layout("state_dict", flat), "whole.pt")
    convert_checkpoint(source, tmp_path / "model", config, **options)

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
    assert pipe.config.latent_rgb == convert.SD1_LATENT_RGB
    frames = preview_frames(torch.zeros(1, 4, 2, 3, 5), convert.SD1_LATENT_RGB)
    assert frames.shape == (1, 2, 3, 5, 3) and frames.unique().tolist() == [128], "nothing is grey"


def test_the_checkpoints_own_text_encoder_is_kept(original, tmp_path):
    config, flat = original
    folder = convert_checkpoint(saved(tmp_path, layout("module", flat)), tmp_path / "model", config)
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    lazy = load_pipeline(folder, device="cpu", dtype="fp32", data_dir=tmp_path).lazy_text_encoder
    tokens = tiny_tokenizer()(["a red ball"], padding="max_length", max_length=77, return_tensors="pt")
    assert torch.equal(lazy(["a red ball"]), tiny_text_encoder()(input_ids=tokens.input_ids).last_hidden_state)


def test_a_folder_goes_back_into_the_originals_layout(original, tmp_path, capsys):
    config, flat = original
    folder = convert_checkpoint(saved(tmp_path, layout("state_dict", flat)), tmp_path / "model", config)
    assert main(["original", str(folder), str(tmp_path / "again.pt")]) == 0
    ours, theirs = read_tensors(tmp_path / "again.pt"), read_tensors(tmp_path / "mine.pt")
    for part in theirs:
        tied = {"encoder.embed_tokens.weight"} & set(theirs[part])
        assert set(ours[part]) == set(theirs[part]) - tied
        assert all(ours[part][name].shape == theirs[part][name].shape and torch.equal(ours[part][name], theirs[part][name]) for name in ours[part])
    assert main(["original", str(tmp_path), str(tmp_path / "no.pt")]) == 2 and "holds no transformer and no vae" in capsys.readouterr().err


def test_every_vae_name_of_the_real_checkpoints_is_found_back():
    keys = json.loads(gzip.decompress((DATA / "state_dict_keys.json.gz").read_bytes()))["vae"]
    original = {name.removeprefix("first_stage_model."): torch.empty(shape, device="meta") for name, shape in keys.items()}
    back = original_vae_state_dict(convert._diffusers_names(original))
    assert {name: t.shape for name, t in back.items()} == {name: t.shape for name, t in original.items()}


def test_a_vae_from_a_model_folder(original, tmp_path):
    config, flat = original
    whole = convert_checkpoint(saved(tmp_path, layout("state_dict", flat), "whole.pt"), tmp_path / "whole", config)
    convert_checkpoint(saved(tmp_path, layout("ema", flat)), tmp_path / "model", config, vae=whole)
    one, other = (load_pipeline(tmp_path / name, device="cpu", text_encoder=False).vae.state_dict() for name in ("whole", "model"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(CheckpointError, match="no VAE"):
        convert_checkpoint(tmp_path / "mine.pt", tmp_path / "again", config, vae=tmp_path / "mine.pt")


def test_large_weights_are_written_in_shards_that_load(original, tmp_path, monkeypatch):
    config, flat = original
    source = saved(tmp_path, layout("state_dict", flat))
    convert_checkpoint(source, tmp_path / "one", config, dtype="bf16")
    monkeypatch.setattr(convert, "SHARD_BYTES", 100_000)
    convert_checkpoint(source, tmp_path / "many", config, dtype="bf16")
    files = list((tmp_path / "many" / "transformer").glob("*.safetensors"))
    assert len(files) > 3 and max(f.stat().st_size for f in files) < 150_000
    one, many = (MiraTransformer3DModel.from_pretrained(tmp_path / name / "transformer").state_dict() for name in ("one", "many"))
    assert set(one) == set(many) and all(torch.equal(one[name], many[name]) for name in one)


@pytest.mark.parametrize("name", list(RELEASES))
def test_every_tensor_of_the_real_checkpoints_has_its_place(name):
    """On the meta device: names and shapes of the released files, as the original's own model lists them."""
    keys = json.loads(gzip.decompress((DATA / "state_dict_keys.json.gz").read_bytes()))
    architecture = Architecture.of_release(RELEASES[name])
    with torch.device("meta"):
        shapes = {part: {k: torch.empty(shape) for k, shape in keys[part].items()} for part in ("128", "768v1_10s", "vae")}
        transformer, vae = MiraTransformer3DModel(**architecture.transformer), build_mira_vae(**architecture.vae)
    real = "768v1_10s" if ":768" in name else "128"
    convert._fitting(transformer, {k.removeprefix("model.diffusion_model."): v for k, v in shapes[real].items()}, "transformer")
    convert._fitting(vae, convert._diffusers_names({k.removeprefix("first_stage_model."): v for k, v in shapes["vae"].items()}), "VAE")


def test_the_command_line(original, tmp_path, capsys):
    config, flat = original
    source = saved(tmp_path, layout("state_dict", flat))
    assert main(["convert", str(source), str(tmp_path / "model"), "--config", str(config), "--dtype", "bf16"]) == 0
    assert load_pipeline(tmp_path / "model", device="cpu", text_encoder=False).transformer.config.num_layers == 2
    assert main(["convert", str(tmp_path / "absent.pt"), str(tmp_path / "other"), "--config", str(config)]) == 2
    assert "absent.pt" in capsys.readouterr().err


def test_a_folder_that_is_there_is_never_overwritten(original, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(CheckpointError, match="there already"):
        convert_checkpoint(saved(tmp_path, layout("state_dict", original[1])), tmp_path / "photos", original[0])
    assert (tmp_path / "photos" / "cat.jpg").exists()


def test_missing_left_over_and_misshapen_tensors_are_named(original, tmp_path):
    config, flat = original
    flat = dict(flat)
    flat["model.diffusion_model.surprise"] = flat.pop("model.diffusion_model.proj_out.bias")
    flat["model.diffusion_model.proj_out.weight"] = torch.zeros(3, 5)
    with pytest.raises(CheckpointError, match=r"missing: proj_out\.bias.*left over: surprise.*proj_out\.weight is \[3, 5\]"):
        convert_checkpoint(saved(tmp_path, layout("state_dict", flat)), tmp_path / "model", config)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.pt"]


def test_tensors_that_belong_to_nothing_are_named(original, tmp_path):
    with pytest.raises(CheckpointError, match="adapter.weight"):
        read_tensors(saved(tmp_path, {"state_dict": {**original[1], "adapter.weight": torch.zeros(2)}}))


class Malicious:
    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("content", ["cut off", "pickle", "zip", "list", "empty"])
def test_a_file_that_is_no_checkpoint_is_refused(content, original, tmp_path):
    import os

    path, mark = tmp_path / "mine.pt", tmp_path / "should-not-exist"
    if content == "cut off":
        saved(tmp_path, layout("state_dict", original[1]))
        path.write_bytes(path.read_bytes()[:50_000])
    elif content == "pickle":
        path.write_bytes(pickle.dumps(Malicious(os.mkdir, str(mark)), protocol=2))
    elif content == "zip":
        saved(tmp_path, {**layout("state_dict", original[1]), "extra": Malicious(os.mkdir, str(mark))})
    elif content == "list":
        saved(tmp_path, [1, 2])
    else:
        path.touch()
    with pytest.raises(CheckpointError, match="mine.pt"):
        read_tensors(path)
    assert not mark.exists()


def test_what_a_trainer_left_beside_the_tensors_is_neither_run_nor_read(original, tmp_path):
    """Lightning and DeepSpeed files hold settings and callbacks too; they stay unread, whatever they would do."""
    mark = tmp_path / "should-not-exist"
    beside = {"hyper_parameters": argparse.Namespace(lr=1e-5), "optimizer": Malicious(shutil.copytree, str(DATA)), "loops": Malicious(exec, f"open({str(mark)!r}, 'w')")}
    parts = read_tensors(saved(tmp_path, {**layout("module", original[1]), **beside}))
    assert not mark.exists() and "proj_out.bias" in parts["transformer"] and "shared.weight" in parts["text_encoder"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: p["denoiser_config"]["params"].update(activation_fn="geglu"), "activation_fn: 'geglu'"),
        (lambda p: p["denoiser_config"]["params"].pop("norm_type"), "norm_type: 'layer_norm' .by default."),
        (lambda p: p["denoiser_config"]["params"].update(extra_layers=3), "not known: extra_layers"),
        (lambda p: p["denoiser_config"]["params"].pop("patch_size"), "patch_size"),
        (lambda p: p["denoiser_config"].update(target="os.system"), "os.system"),
        (lambda p: p["first_stage_config"].update(target="ldm.AutoencoderKL"), "ldm.AutoencoderKL"),
        (lambda p: p.update(parameterization="v"), "parameterization: 'v'"),
        (lambda p: p.pop("denoiser_config"), "not one of Mira's YAML files"),
    ],
)
def test_a_yaml_of_something_else_is_refused(change, message, original, tmp_path):
    config = OmegaConf.to_container(OmegaConf.load(original[0]))
    change(config["model"]["params"])
    OmegaConf.save(config, tmp_path / "other.yaml")
    with pytest.raises(CheckpointError, match=message):
        Architecture.of_yaml(tmp_path / "other.yaml")


def test_a_yaml_that_leaves_settings_out_means_the_originals_defaults(original, tmp_path):
    config = OmegaConf.to_container(OmegaConf.load(original[0]))
    params = config["model"]["params"]
    for name in ("scale_b", "scale_factor", "linear_start", "linear_end"):
        params.pop(name)
    for name in ("norm_eps", "attention_bias", "text_spatial_cond", "out_channels"):
        params["denoiser_config"]["params"].pop(name)
    OmegaConf.save(config, tmp_path / "short.yaml")
    short = Architecture.of_yaml(tmp_path / "short.yaml")
    assert short.transformer["norm_eps"] == 1e-5 and not short.transformer["attention_bias"] and not short.transformer["text_spatial_cond"]
    assert short.transformer["out_channels"] == short.transformer["in_channels"] and short.vae["scale_factor"] == 1
    assert (short.scheduler["scale_b"], short.scheduler["beta_start"], short.scheduler["beta_end"]) == (0.3, 1e-4, 2e-2)


def test_a_yaml_without_the_params_level(original, tmp_path):
    """As one of Mira's own six files is."""
    config = OmegaConf.load(original[0])
    OmegaConf.save({"model": config.model.params}, tmp_path / "flat.yaml")
    assert Architecture.of_yaml(tmp_path / "flat.yaml") == Architecture.of_yaml(original[0])


@pytest.mark.parametrize("text", ["a: 1", "a: [1", "model: {params: ${nowhere}}", ""])
def test_a_yaml_that_cannot_be_read(text, tmp_path):
    (tmp_path / "other.yaml").write_text(text)
    with pytest.raises(CheckpointError, match="not one of Mira"):
        Architecture.of_yaml(tmp_path / "other.yaml")


def test_a_name_that_is_not_released_asks_for_the_yaml(original, tmp_path):
    with pytest.raises(CheckpointError, match="--config"):
        convert_checkpoint(saved(tmp_path, layout("state_dict", original[1])), tmp_path / "model")


# -- too little room --------------------------------------------------------------------------------


def disk_with(free):
    return lambda _: shutil._ntuple_diskusage(100 * GB, 100 * GB - free, free)


def test_a_full_disk_is_told_before_the_work(original, tmp_path, monkeypatch):
    source = saved(tmp_path, layout("state_dict", original[1]))
    monkeypatch.setattr(shutil, "disk_usage", disk_with(1000))
    with pytest.raises(ResourceError, match="0.0 GB free"):
        convert_checkpoint(source, tmp_path / "model", original[0])
    assert not (tmp_path / "model").exists()


def test_a_download_that_does_not_fit_is_not_started(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: argparse.Namespace(size=11 * GB, etag="a"))
    monkeypatch.setattr(huggingface_hub.file_download, "http_get", lambda *_, **__: pytest.fail("downloading has begun"))
    monkeypatch.setattr(shutil, "disk_usage", disk_with(20 * GB))
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


# -- found, downloaded, or told how to get it -------------------------------------------------------


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


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
