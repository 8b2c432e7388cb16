"""Frames put in between by RIFE (Huang et al. 2022, arXiv:2011.06294), where the package ccvfi and RIFE's weights are installed.

python -m core.rife SOURCE PATH --weights FILE [--fps 24]      a process of its own: the studio's page loads no torch
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np

from .files import WriteError
from .smooth import SMOOTH_FPS, with_note
from .video_io import VideoError, probe, read_video, save_video


def in_between(frames: np.ndarray, fps: float, wanted: float, weights: str | os.PathLike, device: str = "auto") -> np.ndarray:
    """``frames`` uint8 [T, H, W, 3] of ``fps`` at ``wanted`` frames a second, uint8 [T', H, W, 3], from the first to the last.

    A frame whose moment is that of a given one is that one. Raises VideoError for weights that are not those of RIFE 4.26.
    """
    import torch
    from ccvfi import CONFIG_REGISTRY, AutoModel, ConfigType

    from .device import choose_device

    device = choose_device(device)
    config = CONFIG_REGISTRY.get(ConfigType.RIFE_IFNet_v426_heavy).model_copy(update={"path": Path(weights)})
    try:
        model = AutoModel.from_config(config, device=device, fp16=False)
        missing = model.model.state_dict().keys() - {name.replace("module.", "") for name in model.get_state_dict()}
    except Exception as error:
        raise VideoError(f"{Path(weights).name} does not hold RIFE's weights: {str(error).splitlines()[0]}") from error
    if missing:  # ccvfi itself would go on with random ones
        raise VideoError(f"{Path(weights).name} does not hold RIFE 4.26: {len(missing)} tensors are missing, {min(missing)} among them.")
    tensors = torch.from_numpy(frames).permute(0, 3, 1, 2).float().div(255)
    made = []
    for moment in np.arange(int((len(frames) - 1) * wanted / fps + 1e-6) + 1) * fps / wanted:
        before, share = int(moment + 1e-6), float(moment) % 1
        if min(share, 1 - share) < 1e-6 or before + 1 == len(frames):
            made.append(frames[min(round(float(moment)), len(frames) - 1)])
            continue
        between = model.inference(tensors[None, before : before + 2].to(device), share, 1.0)[0]
        made.append(between.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy())
    return np.stack(made)


def main(argv: list[str] | None = None) -> int:
    """Write one video; exit status 1, with the reason, where it cannot."""
    parser = argparse.ArgumentParser(prog="python -m core.rife", description="Put frames in between by RIFE.")
    parser.add_argument("source", type=Path)
    parser.add_argument("path", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--fps", type=float, default=SMOOTH_FPS)
    arguments = parser.parse_args(argv)
    try:
        frames = in_between(read_video(arguments.source), probe(arguments.source)["fps"], arguments.fps, arguments.weights)
        save_video(frames, arguments.path, arguments.fps, with_note(arguments.source, f"interpolated to {arguments.fps:g} frames a second by RIFE 4.26"))
    except (VideoError, WriteError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
