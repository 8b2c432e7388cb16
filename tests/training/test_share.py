"""Checkpoints as others can take them: files, folders, the Hub."""

import json
from pathlib import Path

import pytest
import torch
from httpx import ConnectError
from safetensors.torch import save_file
from tiny import save_tiny_model, tiny_transformer

from core import MiraScheduler, load_pipeline
from core.originals import read_tensors
from training.__main__ import main
from training.config import load_config, save_config
from training.runs import read_run
from training.share import model_card

TOKEN = "hf_secretsecret"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder with a run of the transformer and one of a LoRA, as the trainer leaves them."""
    root = tmp_path_factory.mktemp("share")
    save_tiny_model(root / "model")
    for name, target in (("whole", "transformer"), ("small", "lora")):
        folder = root / "runs" / name
        last = folder / "checkpoints" / "step-20"
        last.mkdir(parents=True)
        save_config(load_config(None, [f"target={target}", f"model={root / 'model'}", "dataset=/clips/birds", f"data_dir={root}", "validation_prompts=[a red bird]"]), folder / "config.yaml")
        (folder / "dataset.json").write_text(json.dumps({"hash": "0123456789ab", "takes": 32, "held_out": 8}))
        (folder / "environment.json").write_text(json.dumps({"torch": "2.10.0", "diffusers": "0.42.1"}))
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 20, "validation_loss": 0.125}) + "\n")
        if target == "lora":
            save_file({"x.lora_A.weight": torch.ones(2, 2)}, last / "lora.safetensors")
        else:
            tiny_transformer(seed=5).save_pretrained(last / "transformer")
            MiraScheduler().save_pretrained(last / "scheduler")
        (last / ".complete").touch()
    return root


def run(data: Path, *words: str) -> int:
    return main([words[0], words[1], "--data-dir", str(data), *words[2:]])


def test_a_checkpoint_is_written_as_a_folder_and_as_mira_has_it(data, tmp_path, capsys):
    assert run(data, "pack", "whole", "--kind", "diffusers", "--out", str(tmp_path / "model")) == 0
    assert run(data, "pack", "whole", "--kind", "mira", "--out", str(tmp_path / "mine.pt"), "--step", "20") == 0
    theirs = load_pipeline(tmp_path / "model", device="cpu", dtype="fp32", text_encoder=False).transformer.state_dict()
    ours = read_tensors(tmp_path / "mine.pt")["transformer"]
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(ours["proj_out.weight"], tiny_transformer(seed=5).proj_out.weight) and sorted(p.name for p in tmp_path.iterdir()) == ["mine.pt", "model"]
    capsys.readouterr()
    assert run(data, "pack", "whole", "--kind", "mira", "--out", str(tmp_path / "mine.pt")) == 2 and "there already" in capsys.readouterr().err
    assert run(data, "pack", "whole", "--kind", "lora", "--out", str(tmp_path / "x")) == 2 and "diffusers or mira, not as lora" in capsys.readouterr().err


def test_a_lora_is_written_as_its_file(data, tmp_path, capsys):
    assert run(data, "pack", "small", "--kind", "lora", "--out", str(tmp_path / "a" / "l.safetensors")) == 0
    assert (tmp_path / "a" / "l.safetensors").read_bytes() == (data / "runs/small/checkpoints/step-20/lora.safetensors").read_bytes()
    assert run(data, "pack", "small", "--kind", "mira", "--out", str(tmp_path / "x.pt")) == 2 and "as lora, not as mira" in capsys.readouterr().err


def test_the_model_card_tells_the_batches_of_each_stage(data, tmp_path):
    save_config(load_config(None, ["target=lora", "model=m", "dataset=d", "gradient_accumulation_steps=2", "curriculum=[{steps: 5}, {steps: 5, train_batch_size: 6, num_frames: [8]}]"]), tmp_path / "config.yaml")
    card = model_card(read_run(tmp_path), data / "runs/small/checkpoints/step-20", "me/mine")
    assert "| Batches | steps 1 to 5: 4 clips of 24 frames; steps 6 to 10: 6 clips of 8 frames; 2 of them make a step |" in card


class Hub:
    """The Hub's end of ``HfApi``: what was sent there."""

    seen: list = []
    refuses: Exception | None = None

    def __init__(self, token):
        Hub.seen.append(("token", token))

    def create_repo(self, repo, private, exist_ok):
        if Hub.refuses:
            raise Hub.refuses
        Hub.seen.append(("repo", repo, private))

    def upload_folder(self, repo_id, folder_path, commit_message):
        Hub.seen.append(("files", repo_id, {str(p.relative_to(folder_path)): p.read_bytes() for p in Path(folder_path).rglob("*") if p.is_file()}, commit_message))


@pytest.fixture
def hub(monkeypatch):
    Hub.seen, Hub.refuses = [], None
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("training.__main__.getpass", lambda question: TOKEN)
    return Hub


@pytest.mark.parametrize("name", ["small", "whole"])
def test_a_checkpoint_goes_to_the_hub_with_a_card_and_without_the_token(data, hub, capsys, caplog, name):
    assert run(data, "push", name, "--repo", "me/birds") == 0
    assert capsys.readouterr().out.strip() == "https://huggingface.co/me/birds"
    (_, token), repo, (_, where, files, message) = hub.seen
    assert token == TOKEN and repo == ("repo", "me/birds", True) and where == "me/birds" and message == f"{name}, step 20"
    card = files["README.md"].decode()
    assert all(words in card for words in ("birds: 32 takes, 8 of them held out (hash 0123456789ab)", "| Loss of held-out clips | 0.1250 |", "- a red bird", "pipeline_tag: text-to-video"))
    assert ("lora.safetensors" in files) == (name == "small") and ("model_index.json" in files) == (name == "whole")
    kept = [p for p in data.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]
    assert not kept and TOKEN not in caplog.text and not any(TOKEN.encode() in content for content in files.values())
    assert not list((data / "runs" / name).glob(".push-*"))


def test_what_the_hub_refuses_is_said_without_the_token(data, hub, capsys):
    hub.refuses = OSError(f"403 Forbidden for {TOKEN}")
    assert run(data, "push", "small", "--repo", "me/birds") == 2
    said = capsys.readouterr().err
    assert "could not be written on the Hub: 403 Forbidden for ***" in said and TOKEN not in said
    hub.refuses = ConnectError("[Errno -2] Name or service not known")
    assert run(data, "push", "small", "--repo", "me/birds") == 2
    assert "on the Hub: [Errno -2] Name or service not known. Push again when this machine has a network." in capsys.readouterr().err
    assert run(data, "push", "small", "--repo", "birds") == 2 and "Write USER/NAME" in capsys.readouterr().err
