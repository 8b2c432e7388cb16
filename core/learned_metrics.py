"""What a video can be measured on by networks whose weights a user may have: CLIP, the aesthetic score and LPIPS.

Nothing is downloaded: until weights are there, a value says "not installed" and how to get them. Frames are uint8 ``[T, H, W, 3]``. No torch before it is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .video_io import require_alike

CLIP_MODEL = "ViT-B-32"
CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""What open_clip calls its weights on the Hub."""
CLIP_REPO, CLIP_FILE = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", CLIP_FILES[0]
CLIP_MISSING = f"not installed: hf download {CLIP_REPO} {CLIP_FILE}"
AESTHETIC_URL = "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_b_32_linear.pth"
AESTHETIC_MISSING = f"not installed: download {AESTHETIC_URL}, and OpenAI's weights that it is for (hf download timm/vit_base_patch32_clip_224.openai), and name them: --aesthetic, --clip and --clip-model ViT-B-32-quickgelu"
LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"
LPIPS_MISSING = "not installed: pip install lpips, then python -c \"import lpips; lpips.LPIPS(net='alex')\" once, which downloads AlexNet"
CLIP_METRICS = {"clip_text": "Fits its prompt (CLIP)", "clip_text_change": "Fits it better later on (CLIP)", "clip_consistency": "Steadiness (CLIP)"}
"""What ``ClipScorer.score`` finds, as it is shown; higher is better in all."""


class Clip(NamedTuple):
    """CLIP's weights on this machine, and how they were trained."""

    weights: Path
    model: str = CLIP_MODEL
    """open_clip's name of the architecture."""
    tag: str | None = None
    """open_clip's name of the weights, which knows their activation and how they want pictures prepared; None for what the architecture usually has."""


class ClipScorer:
    """CLIP (Radford et al. 2021, arXiv:2103.00020) through open_clip, from a file of weights on this machine.

    Args:
        weights: A safetensors or .pt file of ``model``.
        model: open_clip's name of the architecture.
        aesthetic: LAION's linear head for these weights (a .pth file with weight [1, D] and bias [1]), for the aesthetic score. Raises ValueError for one of another width, or for another file.
        tag: open_clip's name of the weights; from a file it reads neither their activation nor their preprocessing.
    """

    def __init__(self, weights: str | Path, model: str = CLIP_MODEL, aesthetic: str | Path | None = None, tag: str | None = None):
        import open_clip
        import torch

        trained = open_clip.get_pretrained_cfg(model, tag) if tag else {}
        prepared = {f"image_{name}": trained.get(name) for name in ("mean", "std", "interpolation", "resize_mode")}
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(model, pretrained=str(weights), force_quick_gelu=trained.get("quick_gelu", False), **prepared)
        self.tokenizer = open_clip.get_tokenizer(model)
        self.model.eval()
        self.head = None if aesthetic is None else torch.load(aesthetic, map_location="cpu", weights_only=True)
        if self.head is not None and (not isinstance(self.head, dict) or not {"weight", "bias"} <= set(self.head)):
            holds = ", ".join(map(str, list(self.head)[:4])) if isinstance(self.head, dict) else f"a {type(self.head).__name__}"
            raise ValueError(f"{aesthetic} is not a linear head: it holds {holds}, and weight and bias are needed. LAION's is at {AESTHETIC_URL}.")
        width = self.model.visual.output_dim
        if self.head is not None and tuple(self.head["weight"].shape) != (1, width):
            raise ValueError(f"{aesthetic} is a head for embeddings of {self.head['weight'].shape[-1]}; {model} gives {width}. Use the head of that CLIP, or name another with --clip-model.")

    def score(self, frames: np.ndarray, prompt: str | None) -> dict[str, Any]:
        """``clip_text``: mean cosine between the frames and the prompt, -1 to 1, higher is better (CLIPScore without its factor, Hessel et al. 2021,
        arXiv:2104.08718); ``clip_text_of_frames``; ``clip_text_change``: that of the last quarter less that of the first, below 0 where the video drifts
        away from its prompt; ``clip_consistency``: mean cosine of neighbouring frames, higher is steadier (Esser et al. 2023, arXiv:2302.03011);
        ``aesthetic``: 1 to 10, higher is better, mean over frames (LAION's aesthetic predictor, Schuhmann et al. 2022, arXiv:2210.08402, sec. 4)."""
        import torch
        from PIL import Image

        with torch.no_grad():
            pictures = torch.stack([self.preprocess(Image.fromarray(frame)) for frame in frames])
            seen = torch.nn.functional.normalize(torch.cat([self.model.encode_image(batch) for batch in pictures.split(16)]), dim=-1)
            found: dict[str, Any] = {"clip_consistency": round(float((seen[1:] * seen[:-1]).sum(-1).mean()), 4) if len(seen) > 1 else None}
            if prompt:
                text = torch.nn.functional.normalize(self.model.encode_text(self.tokenizer([prompt])), dim=-1)
                cosines, quarter = (seen @ text.T)[:, 0], len(seen) // 4
                found["clip_text"] = round(float(cosines.mean()), 4)
                found["clip_text_change"] = round(float(cosines[-quarter:].mean() - cosines[:quarter].mean()), 4) if quarter else None
                found["clip_text_of_frames"] = [round(float(value), 4) for value in cosines]
            found["aesthetic"] = AESTHETIC_MISSING if self.head is None else round(float((seen @ self.head["weight"].T.to(seen) + self.head["bias"].to(seen)).mean()), 4)
        return found


def clip_files() -> list[Path]:
    """Files in Hugging Face's cache that are called as open_clip's weights are, those of CLIP_REPO first. No torch."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    repos = [folder.name.removeprefix("models--").replace("--", "/") for folder in sorted(Path(HF_HUB_CACHE).glob("models--*--*"))]
    found = [try_to_load_from_cache(repo, name) for repo in sorted(repos, key=lambda repo: repo != CLIP_REPO) for name in CLIP_FILES]
    return [Path(file) for file in found if isinstance(file, str)]


def known_clip(weights: Path) -> Clip | None:
    """What a file in Hugging Face's cache holds, if open_clip knows that repository or its config lies beside it."""
    import open_clip

    repo = next((part.removeprefix("models--").replace("--", "/") for part in weights.parts if part.startswith("models--")), None)
    for model, tag in open_clip.list_pretrained() if repo else ():
        if (open_clip.get_pretrained_cfg(model, tag).get("hf_hub") or "").strip("/") == repo:
            return Clip(weights, model, tag)
    return Clip(weights, f"local-dir:{weights.parent}") if (weights.parent / "open_clip_config.json").is_file() else None


def installed_clip() -> Clip | None:
    """The first of ``clip_files`` that is known; None where none is."""
    return next((clip for file in clip_files() if (clip := known_clip(file))), None)


def installed_lpips() -> Any | None:
    """LPIPS (Zhang et al. 2018, arXiv:1801.03924; version 0.1 on AlexNet) as a module; None without the package, or without AlexNet in torch's cache."""
    from importlib.util import find_spec

    if find_spec("lpips") is None:
        return None
    import torch

    if not (Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_BACKBONE).is_file():
        return None
    import lpips

    return lpips.LPIPS(net="alex", verbose=False).eval()


def lpips_distance(a: np.ndarray, b: np.ndarray) -> float | str:
    """``installed_lpips`` of each pair of frames, their mean: 0 (equal) and up, about 1 for unrelated ones; lower is more alike. LPIPS_MISSING without it.
    Raises VideoError for videos of different shapes."""
    require_alike(a, b)
    if (model := installed_lpips()) is None:
        return LPIPS_MISSING
    import torch

    tensor = lambda frames: torch.from_numpy(frames).permute(0, 3, 1, 2).float().div(127.5).sub(1)  # noqa: E731  T 3 H W in -1..1
    with torch.no_grad():
        return round(float(torch.cat([model(x, y).flatten() for x, y in zip(tensor(a).split(8), tensor(b).split(8))]).mean()), 4)
