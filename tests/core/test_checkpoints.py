"""Conversion of Mira's three layouts, there and back, and what is refused."""

import argparse
import gzip
import json
import pickle
import re
import shutil

import pytest
import torch
from omegaconf import OmegaConf
from tiny import DATA, disk_with, layout, reference, saved, tiny_text_encoder, tiny_tokenizer

from core import MiraTransformer3DModel, convert, convert_checkpoint, load_pipeline
from core.checkpoints import CheckpointError, main
from core.device import ResourceError
from core.originals import Architecture, read_tensors
from core.releases import RELEASES
from core.vae import build_mira_vae, original_vae_state_dict, preview_frames


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


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: p.update(first_stage_config="x"), "not one of Mira's YAML files"),
        (lambda p: p["first_stage_config"]["params"]["decoder_config"]["params"].update(ch_mult="ab"), "no model that can be built"),
        (lambda p: p["denoiser_config"]["params"].update(num_layers="two"), "no model that can be built"),
        (lambda p: p["denoiser_config"]["params"].update(num_attention_heads=0), "no model that can be built"),
        (lambda p: p["denoiser_config"]["params"].update(window_attn=[1, 2, 3]), "no model that can be built .*patches"),
        (lambda p: p.update(scale_b=7), "no model that can be built .*scale_b is 7"),
    ],
)
def test_a_yaml_whose_values_make_no_model_is_told_in_a_line(change, message, original, tmp_path, capsys):
    config = OmegaConf.to_container(OmegaConf.load(original[0]))
    change(config["model"]["params"])
    OmegaConf.save(config, tmp_path / "other.yaml")
    source = saved(tmp_path, layout("state_dict", original[1]))
    assert main(["convert", str(source), str(tmp_path / "model"), "--config", str(tmp_path / "other.yaml")]) == 2
    told = capsys.readouterr().err
    assert re.search(message, told) and told.count("\n") == 1 and "other.yaml" in told


@pytest.mark.parametrize("name, tensor", [("shared.weight", torch.zeros(3)), ("encoder.block.x.y", torch.zeros(3)), ("encoder.block.0.layer.0.SelfAttention.q.weight", None)])
def test_a_text_encoder_of_another_kind_is_told(name, tensor, original, tmp_path):
    flat = {**original[1], f"cond_stage_model.transformer.{name}": tensor}
    flat = {key: value for key, value in flat.items() if value is not None}
    with pytest.raises(CheckpointError, match="not those of a T5 v1.1 encoder"):
        convert_checkpoint(saved(tmp_path, layout("state_dict", flat)), tmp_path / "model", original[0])


def test_tensors_that_are_not_as_they_were_written_are_not_read(original, tmp_path):
    path = saved(tmp_path, layout("state_dict", original[1]))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="mine.pt is damaged: the checksum of mine/data/"):
        read_tensors(path)


def test_a_damaged_file_of_a_model_folder_is_named(original, tmp_path, capsys):
    folder = convert_checkpoint(saved(tmp_path, layout("state_dict", original[1])), tmp_path / "model", original[0])
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="diffusion_pytorch_model.safetensors is damaged .1,000 bytes"):
        convert_checkpoint(saved(tmp_path, layout("ema", original[1]), "ema.pt"), tmp_path / "other", original[0], vae=folder)
    assert main(["original", str(folder), str(tmp_path / "back.pt")]) == 2 and "is damaged" in capsys.readouterr().err


def test_a_name_that_is_not_released_asks_for_the_yaml(original, tmp_path):
    with pytest.raises(CheckpointError, match="--config"):
        convert_checkpoint(saved(tmp_path, layout("state_dict", original[1])), tmp_path / "model")


def test_a_full_disk_is_told_before_the_work(original, tmp_path, monkeypatch):
    source = saved(tmp_path, layout("state_dict", original[1]))
    monkeypatch.setattr(shutil, "disk_usage", disk_with(1000))
    with pytest.raises(ResourceError, match="0.0 GB free"):
        convert_checkpoint(source, tmp_path / "model", original[0])
    assert not (tmp_path / "model").exists()


def test_a_checkpoint_that_was_saved_without_checksums_is_read(original, tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path, layout("state_dict", original[1]))
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_tensors(path)["transformer"]
