"""What a video can be measured on by networks whose weights a user may have: CLIP, the aesthetic score and LPIPS.

Nothing is downloaded: until weights are there, a value says "not installed" and how to get them. Frames are uint8 ``[T, H, W, 3]``. No torch before it is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .video_io import require_alike

CLIP_MODEL = "ViT-B-32"
CLIP_REPO, CLIP_FILE = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "open_clip_model.safetensors"
CLIP_MISSING = f"not installed: hf download {CLIP_REPO} {CLIP_FILE}"
AESTHETIC_URL = "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_b_32_linear.pth"
AESTHETIC_MISSING = f"not installed: download {AESTHETIC_URL}, and OpenAI's weights that it is for (hf download timm/vit_base_patch32_clip_224.openai), and name them: --aesthetic, --clip and --clip-model ViT-B-32-quickgelu"
LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"
LPIPS_MISSING = "not installed: pip install lpips, then python -c \"import lpips; lpips.LPIPS(net='alex')\" once, which downloads AlexNet"
CLIP_METRICS = {"clip_text": "Fits its prompt (CLIP)", "clip_text_change": "Fits it better later on (CLIP)", "clip_consistency": "Steadiness (CLIP)"}
"""What ``ClipScorer.score`` finds, as it is shown; higher is better in all."""


class ClipScorer:
    """CLIP (Radford et al. 2021, arXiv:2103.00020) through open_clip, from a file of weights on this machine.

    Args:
        weights: A safetensors or .pt file of ``model``.
        model: open_clip's name of the architecture.
        aesthetic: LAION's linear head for these weights (a .pth file with weight [1, D] and bias [1]), for the aesthetic score. Raises ValueError for one of another width.
    """

    def __init__(self, weights: str | Path, model: str = CLIP_MODEL, aesthetic: str | Path | None = None):
        import open_clip
        import torch

        self.model, _, self.preprocess = open_clip.create_model_and_transforms(model, pretrained=str(weights))
        self.tokenizer = open_clip.get_tokenizer(model)
        self.model.eval()
        self.head = None if aesthetic is None else torch.load(aesthetic, map_location="cpu", weights_only=True)
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


def default_clip() -> tuple[Path, str] | None:
    """CLIP_MODEL's weights in Hugging Face's cache, with its name; None where they were not downloaded. No torch."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(CLIP_REPO, CLIP_FILE)
    return (Path(found), CLIP_MODEL) if isinstance(found, str) else None


def installed_clip() -> tuple[Path, str] | None:
    """``default_clip``, or any other weights in that cache that open_clip knows, with its name of their architecture."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    if found := default_clip():
        return found
    if not any(Path(HF_HUB_CACHE).glob("models--*")):
        return None  # and open_clip, with torch, need not be loaded to know
    import open_clip

    for model, tag in open_clip.list_pretrained():
        repo = (open_clip.get_pretrained_cfg(model, tag).get("hf_hub") or "").strip("/")
        for name in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
            found = try_to_load_from_cache(repo, name) if repo.count("/") == 1 else None
            if isinstance(found, str):
                return Path(found), model
    return None


def lpips_distance(a: np.ndarray, b: np.ndarray) -> float | str:
    """LPIPS (Zhang et al. 2018, arXiv:1801.03924; version 0.1 on AlexNet) of each pair of frames, their mean: 0 (equal) and up, about 1 for unrelated
    ones; lower is more alike. LPIPS_MISSING without the package, or without AlexNet in torch's cache. Raises VideoError for videos of different shapes."""
    from importlib.util import find_spec

    require_alike(a, b)
    if find_spec("lpips") is None:
        return LPIPS_MISSING
    import torch

    if not (Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_BACKBONE).is_file():
        return LPIPS_MISSING
    import lpips

    model = lpips.LPIPS(net="alex", verbose=False).eval()
    tensor = lambda frames: torch.from_numpy(frames).permute(0, 3, 1, 2).float().div(127.5).sub(1)  # noqa: E731  T 3 H W in -1..1
    with torch.no_grad():
        return round(float(torch.cat([model(x, y).flatten() for x, y in zip(tensor(a).split(8), tensor(b).split(8))]).mean()), 4)
