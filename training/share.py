"""A checkpoint as others can take it: a diffusers folder, a LoRA file, Mira's own .pt; or on the Hugging Face Hub, with a model card."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from core.files import replacing
from core.hub import not_reached
from core.releases import RELEASES

from .config import ConfigError
from .runs import Run
from .use import LORA_FILE, checkpoint_of, write_model

log = logging.getLogger(__name__)

KINDS = ("diffusers", "lora", "mira")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def pack(run: Run, step: int | None, kind: str, out: str | Path) -> Path:
    """Write a checkpoint (the newest for ``step=None``) as ``out``: a model folder, a LoRA's safetensors, or one file in Mira's layout.

    Raises ConfigError where the checkpoint is of another kind, ``out`` is there already, or Mira's layout has no place for its VAE; WriteError.
    """
    checkpoint, out = checkpoint_of(run, step), Path(out)
    lora = (checkpoint / LORA_FILE).is_file()
    if kind not in KINDS or (kind == "lora") != lora:
        raise ConfigError(f"{run.name} has {'LoRAs' if lora else 'whole parts of a model'}; its checkpoints can be written as {'lora' if lora else 'diffusers or mira'}, not as {kind}.")
    if out.exists():
        raise ConfigError(f"{out} is there already. Give another name, or delete it first.")
    if kind == "lora":
        with replacing(out) as file:
            shutil.copyfile(checkpoint / LORA_FILE, file)
        return out
    if kind == "diffusers":
        return write_model(run, checkpoint, out)
    from core.convert import write_original
    from core.device import ResourceError
    from core.originals import CheckpointError

    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=out.parent) as place:
            return write_original(write_model(run, checkpoint, Path(place) / "model"), out)
    except (CheckpointError, ResourceError) as error:
        raise ConfigError(str(error)) from None


def push(run: Run, step: int | None, repo: str, token: str, private: bool = True) -> str:
    """Put a checkpoint on the Hub with a model card; its address. The token is used for this and kept nowhere.

    Raises ConfigError for a name that is no repository's, an empty token, what the Hub says, or a Hub that cannot be reached.
    """
    from httpx import TransportError
    from huggingface_hub import HfApi

    if not HUB_NAME.fullmatch(repo):
        raise ConfigError(f"{repo!r} is not the name of a repository on the Hub. Write USER/NAME.")
    if not token.strip():
        raise ConfigError("A token with the right to write is needed: https://huggingface.co/settings/tokens makes one.")
    checkpoint, api = checkpoint_of(run, step), HfApi(token=token.strip())
    run.folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=run.folder, prefix=".push-") as place:
        folder = Path(place) / "model"
        if (checkpoint / LORA_FILE).is_file():
            folder.mkdir()
            shutil.copyfile(checkpoint / LORA_FILE, folder / LORA_FILE)
        else:
            write_model(run, checkpoint, folder)
        (folder / "README.md").write_text(model_card(run, checkpoint, repo), encoding="utf-8")
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"{run.name}, step {checkpoint.name.split('-')[1]}")
        except not_reached() as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0].replace(token.strip(), "***")
            remedy = ". Push again when this machine has a network." if isinstance(error, TransportError) else ""
            raise ConfigError(f"{repo} could not be written on the Hub: {said}{remedy}") from None
    log.info("%s step %s is at %s", run.name, checkpoint.name, repo)
    return f"https://huggingface.co/{repo}"


def model_card(run: Run, checkpoint: Path, repo: str) -> str:
    """A model card (Mitchell et al. 2019, arXiv:1810.03993) with what the run folder knows; what it does not know is not claimed."""
    config, step = run.config, int(checkpoint.name.split("-")[1])
    lora = (checkpoint / LORA_FILE).is_file()
    dataset, environment = (_read(run.folder / name) for name in ("dataset.json", "environment.json"))
    judged = {row["step"]: row["validation_loss"] for row in run.metrics() if "validation_loss" in row}
    released = RELEASES.get(config.model)
    head = {"library_name": "diffusers", "pipeline_tag": "text-to-video", "tags": ["mira", "text-to-video", *(["lora"] if lora else [])]}
    if released is not None:
        head["base_model"] = released.repo
    facts = {
        "Started from": config.model, "Trained": "a LoRA beside the transformer" if lora else config.target.replace("_", " "), "Steps": step,
        "Batches": f"{config.plan()}{f'; {batches} of them make a step' if (batches := config.gradient_accumulation_steps) > 1 else ''}", "Learning rate": f"{config.learning_rate:g}, {config.lr_schedule}, {config.lr_warmup_steps} steps of warm-up",
        "Sizes and lengths": f"{', '.join(config.sizes)} pixels; {', '.join(map(str, config.lengths))} frames", "Seed": config.seed,
        "Data": f"{Path(config.dataset).name}: {dataset.get('takes', '?')} takes, {dataset.get('held_out', '?')} of them held out (hash {dataset.get('hash', '?')})",
        "Loss of held-out clips": f"{judged[step]:.4f}" if step in judged else "not measured", "Made with": f"torch {environment.get('torch', '?')}, diffusers {environment.get('diffusers', '?')}",
    }  # fmt: skip
    if lora:
        facts["Rank and alpha"] = f"{config.lora_rank}, {config.lora_alpha:g}"
        use = f"Put `{LORA_FILE}` under a name of yours into the `loras/` folder of Mira studio's data folder and name it in the form, or\n\n```\npython -m core.generate \"A prompt.\" --model {config.model} --loras NAME\n```"
    else:
        use = f"```\npython -m core.generate \"A prompt.\" --model {repo}\n```"
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    prompts = "".join(f"- {prompt}\n" for prompt in config.validation_prompts) or "None were set.\n"
    licence = "Mira's weights have their own terms (GPL-3 for its code); see the model it was started from." if released is not None else "The terms of the model it was started from hold."
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {run.name}, step {step}\n\nText to video with the spatial-temporal diffusion transformer of Mira, fine-tuned in Mira studio.\n\n"
        f"| | |\n|---|---|\n{table}\n\n## Use\n\n{use}\n\n## Prompts it was watched by\n\n{prompts}\n## Limits\n\nNobody has judged it but by the figures above. It makes what its clips show, faults included. {licence}\n"
    )


def _read(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text())
    return {}
