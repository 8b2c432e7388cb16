"""What a video can be measured on: motion, flicker, sharpness, cuts, the camera, how it differs from another one, and how it fits its prompt.

    python -m core.metrics VIDEO... [--against VIDEO] [--clip WEIGHTS] [--clip-model NAME] [--aesthetic WEIGHTS] [--json | --csv]

METRICS work without weights; those of ``core.learned_metrics`` (CLIP's, the aesthetic score, LPIPS) need some that are never downloaded here: until they
are there, their value says "not installed" and how to get them. Proxies carry names of their own; only ``vbench_temporal_flickering`` may stand beside published figures.
Of MiraBench's perspectives (Ju et al. 2024, arXiv:2407.06358) these are temporal consistency (tracking_persistence, clip_consistency), motion
strength, 3D consistency (epipolar_error, matches_kept), visual quality (aesthetic) and text alignment (clip_text); distribution consistency (FVD)
compares sets of videos by a network that no kept library carries, and is not measured. Frames are uint8 ``[T, H, W, 3]``. No torch before CLIP or LPIPS.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import pickle
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .learned_metrics import AESTHETIC_MISSING, AESTHETIC_URL, CLIP_FILE, CLIP_MISSING, CLIP_MODEL, CLIP_REPO, Clip, ClipScorer, installed_clip, known_clip, lpips_distance
from .video_io import VideoError, read_settings, read_video, require_alike

CUT = 60.0
"""Mean difference of neighbouring frames (of 255, on 32 x 32 pixels) from which the picture may be another one; it must also stand out."""
STANDS_OUT = 6.0
"""How many times the usual step a cut is."""
STILL = 0.6
"""Mean difference of neighbouring frames (of 255, on 32 x 32 pixels) below which nothing moves."""
BLANK = 2.0
"""Standard deviation of a picture's grey levels below which there is nothing in it."""
FLICKERS = 4.0
"""Grey levels of ``flicker`` from which it catches the eye."""
MOST_PAIRS = 96
"""Pairs of neighbours whose optical flow is computed: of a longer video so many, evenly spread."""
POINTS = 300
"""Corners that are followed at most."""
TRACKED = 1.0
"""Pixels by which a corner that is followed forth and back may miss its place."""
MATCHED_SPAN = 8
"""For 3D consistency frames are matched with those this share of the clip later: an eighth."""
LEAST_MATCHES = 16
"""Matches of two frames from which their geometry is looked at; eight would fit any."""
ON_LINE = 1.0
"""Pixels by which a match may miss its epipolar line and still count as one."""


class Frames:
    """Frames with what several metrics need of them, computed once.

    Args:
        frames: uint8 ``[T, H, W, 3]``. Raises VideoError for anything else.
        tick: Called again and again while something long is computed; what it raises ends that.
    """

    def __init__(self, frames: np.ndarray, tick: Callable[[], object] = lambda: None):
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
            raise VideoError(f"Frames are {frames.dtype} {tuple(frames.shape)}; uint8 [T, H, W, 3] is needed.")
        self.frames, self.tick = frames, tick

    @cached_property
    def grey(self) -> np.ndarray:
        """uint8 [T, H, W]."""
        return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in self.frames])

    @cached_property
    def steps(self) -> np.ndarray:
        """Mean absolute difference of neighbouring frames on 32 x 32 pixels, of 255: [T - 1]."""
        small = np.stack([cv2.resize(frame, (32, 32), interpolation=cv2.INTER_AREA) for frame in self.frames]).astype(np.float32)
        return np.abs(np.diff(small, axis=0)).mean((1, 2, 3))

    @cached_property
    def pairs(self) -> list[int]:
        """The first frames of the pairs of neighbours whose motion is looked at: all of them, or MOST_PAIRS evenly spread."""
        count = len(self.frames) - 1
        return list(range(count)) if count <= MOST_PAIRS else np.linspace(0, count - 1, MOST_PAIRS).round().astype(int).tolist()

    @cached_property
    def flows(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Optical flow of each of ``pairs``, there and back, in pixels: [H, W, 2] each, x first.

        Farneback 2003, "Two-Frame Motion Estimation Based on Polynomial Expansion".
        """
        flow = lambda a, b: cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 4, 13, 5, 5, 1.1, 0)  # noqa: E731
        found = []
        for index in self.pairs:
            self.tick()
            a, b = self.grey[index], self.grey[index + 1]
            found.append((flow(a, b), flow(b, a)))
        return found

    @cached_property
    def camera(self) -> np.ndarray:
        """What the picture as a whole does in each of ``pairs``: [P, 4] of shift right, shift down (pixels), growth (1 is none), turn (radians).

        Corners are followed (Lucas and Kanade 1981) and most of them agreed on by RANSAC, so that one moving object does not count as the camera
        where there is something to follow behind it; over an empty background it does.
        Pairs in which fewer than six corners are found are NaN.
        """
        rows = np.full((len(self.pairs), 4), np.nan)
        height, width = self.grey.shape[1:]
        middle = np.array([(width - 1) / 2, (height - 1) / 2])
        for row, index in enumerate(self.pairs):
            self.tick()
            start = _corners(self.grey[index])
            end, found = _follow(self.grey[index], self.grey[index + 1], start)
            if found.sum() < 6:
                continue
            matrix, _ = cv2.estimateAffinePartial2D(start[found], end[found], method=cv2.RANSAC, ransacReprojThreshold=0.7)
            if matrix is not None:
                shift = matrix @ np.append(middle, 1) - middle
                rows[row] = *shift, math.hypot(matrix[0, 0], matrix[1, 0]), math.atan2(matrix[1, 0], matrix[0, 0])
        return rows

    @cached_property
    def geometry(self) -> list[tuple[float, float]]:
        """Of each pair of frames an eighth of the clip apart: the mean distance of matches to their epipolar lines (pixels), and the share of matches that keep to them.

        SIFT (Lowe 2004) with his ratio test of 0.75, nearest neighbours searched exactly, one fundamental matrix by RANSAC; pairs with fewer than LEAST_MATCHES are left out.
        """
        step = max(1, len(self.frames) // MATCHED_SPAN)
        sift, matcher = cv2.SIFT_create(), cv2.BFMatcher(cv2.NORM_L2)
        described = {}
        for index in range(0, len(self.frames), step):
            self.tick()
            described[index] = sift.detectAndCompute(self.grey[index], None)
        found = []
        for (points_a, words_a), (points_b, words_b) in zip(described.values(), list(described.values())[1:]):
            if words_a is None or words_b is None or len(words_b) < 2:
                continue
            good = [pair[0] for pair in matcher.knnMatch(words_a, words_b, k=2) if pair[0].distance < 0.75 * pair[1].distance]
            if len(good) < LEAST_MATCHES:
                continue
            a = np.array([points_a[match.queryIdx].pt for match in good])
            b = np.array([points_b[match.trainIdx].pt for match in good])
            matrix, kept = cv2.findFundamentalMat(a, b, cv2.FM_RANSAC, ON_LINE, 0.999)
            if matrix is None or matrix.shape != (3, 3):
                continue
            lines = np.c_[a, np.ones(len(a))] @ matrix.T  # the line in b of each point of a
            distance = np.abs((np.c_[b, np.ones(len(b))] * lines).sum(1)) / np.linalg.norm(lines[:, :2], axis=1).clip(1e-9)
            found.append((float(distance[kept.ravel() == 1].mean()), float(kept.mean())))
        return found


def motion_strength(clip: Frames) -> float | None:
    """Mean length of the optical flow, in pixels a frame: 0 (nothing moves) and up; neither direction is better. A proxy of dynamic degree
    (VBench, Huang et al. 2023, arXiv:2311.17982, uses RAFT)."""
    return float(np.mean([np.linalg.norm(there, axis=2).mean() for there, _ in clip.flows])) if clip.flows else None


def vbench_temporal_flickering(clip: Frames) -> float | None:
    """(255 - mean absolute difference of neighbouring frames) / 255: 0 to 1, higher is better, meant for clips in which nothing should move
    (VBench, Huang et al. 2023, arXiv:2311.17982, sec. 3.2)."""
    if len(clip.frames) < 2:
        return None
    return float(np.mean([255 - np.abs(a.astype(np.int16) - b).mean() for a, b in zip(clip.frames, clip.frames[1:])]) / 255)


def flicker(clip: Frames) -> float | None:
    """By how many grey levels (of 255) the picture goes up and down from frame to frame: 0 and up, lower is better.

    Mean over time of the median over pixels of half the second difference: steady fading gives 0, an alternation by ``a`` gives ``a``, and what moves
    through less than half of the picture does not count.
    """
    if len(clip.frames) < 3:
        return None
    grey = clip.grey.astype(np.int16)
    return float(np.mean([np.median(np.abs(a - 2 * b + c)) for a, b, c in zip(grey, grey[1:], grey[2:])]) / 2)


def warping_error(clip: Frames) -> float | None:
    """Mean squared difference (of pixels from 0 to 1) between a frame and the next one moved back along the optical flow: 0 to 1, lower is better.

    Pixels that come into view or go out of it are left out: those whose flow there and back does not return (Lai et al. 2018, "Learning Blind Video
    Temporal Consistency", arXiv:1808.00449, eq. 10 and 11).
    """
    errors = []
    height, width = clip.grey.shape[1:]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    for index, (there, back) in zip(clip.pairs, clip.flows):
        a, b = clip.frames[index], clip.frames[index + 1]
        to_x, to_y = x + there[..., 0], y + there[..., 1]
        moved = cv2.remap(b, to_x, to_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        returned = cv2.remap(back, to_x, to_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        inside = (to_x >= 0) & (to_x <= width - 1) & (to_y >= 0) & (to_y <= height - 1)
        both = (there**2).sum(2) + (returned**2).sum(2)
        seen = inside & (((there + returned) ** 2).sum(2) <= 0.01 * both + 0.5)
        if seen.any():
            errors.append(float((((a.astype(np.float32) - moved) / 255) ** 2)[seen].mean()))
    return float(np.mean(errors)) if errors else None


def sharpness_of_frames(clip: Frames) -> list[float]:
    """Of each frame the variance of its Laplacian (Pech-Pacheco et al. 2000): 0 (blank, or blurred away) and up."""
    return [float(cv2.Laplacian(grey, cv2.CV_64F).var()) for grey in clip.grey]


def sharpness(clip: Frames) -> float:
    """Mean of ``sharpness_of_frames``: 0 and up; higher is sharper, noise included."""
    return float(np.mean(sharpness_of_frames(clip)))


def sharpness_kept(clip: Frames) -> float | None:
    """Sharpness of the last quarter over that of the first: 1 where nothing is lost, lower where the picture washes out. None below four frames."""
    values, quarter = sharpness_of_frames(clip), len(clip.frames) // 4
    return float(np.mean(values[-quarter:]) / np.mean(values[:quarter])) if quarter and np.mean(values[:quarter]) > 0 else None


def cuts(clip: Frames) -> list[int]:
    """The frames with which another scene begins: those whose difference to the one before is large, and STANDS_OUT times the usual."""
    if len(clip.steps) < 3:
        return []
    usual = float(np.median(clip.steps))
    return [index + 1 for index, step in enumerate(clip.steps) if step > max(CUT, STANDS_OUT * usual)]


def scene_cuts(clip: Frames) -> int:
    """How many cuts there are: 0 and up; a clip of one scene should have none."""
    return len(cuts(clip))


def loop_gap(clip: Frames) -> float | None:
    """By how many grey levels (of 255) the jump from the last frame to the first is larger than the usual step: 0 loops without a seam, lower is better."""
    if len(clip.frames) < 3:
        return None
    steps = [float(np.abs(a.astype(np.int16) - b).mean()) for a, b in zip(clip.frames, clip.frames[1:])]
    return max(0.0, float(np.abs(clip.frames[-1].astype(np.int16) - clip.frames[0]).mean()) - float(np.median(steps)))


def tracking_persistence(clip: Frames) -> float | None:
    """Share of the first frame's corners that can be followed to the last one: 0 to 1. High where things last and stay in view. A proxy: what rightly
    leaves the picture is lost too. None where the first frame has no corners, or is the only one."""
    points = _corners(clip.grey[0])
    if len(clip.frames) < 2 or not len(points):
        return None
    alive = np.ones(len(points), bool)
    for a, b in zip(clip.grey, clip.grey[1:]):
        clip.tick()
        if not alive.any():
            break
        moved, found = _follow(a, b, points[alive])
        points[alive] = moved
        alive[np.flatnonzero(alive)[~found]] = False
    return float(alive.mean())


def epipolar_error(clip: Frames) -> float | None:
    """By how many pixels matched points miss their epipolar lines in frames an eighth of the clip apart, those that fit at all: 0 to 1, lower is more rigid.
    After Li et al. 2024, arXiv:2402.17403 (MiraBench's 3D consistency); their frames and thresholds are not known, so this is a proxy. None with too little to match."""
    return float(np.mean([error for error, _ in clip.geometry])) if clip.geometry else None


def matches_kept(clip: Frames) -> float | None:
    """Share of matched points that one camera's move explains, in frames an eighth of the clip apart: 0 to 1, higher is more rigid (the keep ratio of Li et al. 2024,
    arXiv:2402.17403). What moves by itself lowers it too. None with too little to match."""
    return float(np.mean([share for _, share in clip.geometry])) if clip.geometry else None


def camera_right(clip: Frames) -> float | None:
    """Pixels a frame that the camera turns to the right (the picture then moves left); negative is left."""
    return _usual(-clip.camera[:, 0])


def camera_down(clip: Frames) -> float | None:
    """Pixels a frame that the camera turns down; negative is up."""
    return _usual(-clip.camera[:, 1])


def camera_zoom(clip: Frames) -> float | None:
    """Percent by which the picture grows in a frame; negative where the camera draws back."""
    value = _usual(clip.camera[:, 2])
    return None if value is None else 100 * (value - 1)


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each pair of frames, in dB: ``[T]``, higher is more alike, infinite for equal ones.

    10 log10(255^2 / mean squared difference). Raises VideoError for videos of different shapes.
    """
    require_alike(a, b)
    error = np.array([np.mean((x.astype(np.float64) - y) ** 2) for x, y in zip(a, b)])
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / error)


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity of each pair of frames in grey: ``[T]``, -1 to 1, higher is more alike (Wang et al. 2004, eq. 13; Gaussian window of 11, sigma 1.5).

    Raises VideoError for videos of different shapes, or with fewer than 11 pixels a side.
    """
    require_alike(a, b)
    if min(a.shape[1:3]) < 11:
        raise VideoError(f"Frames of {a.shape[2]}x{a.shape[1]} are too small for SSIM; 11 pixels a side are needed.")
    blur = lambda picture: cv2.GaussianBlur(picture, (11, 11), 1.5)[5:-5, 5:-5]  # noqa: E731
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for x, y in zip(Frames(a).grey.astype(np.float64), Frames(b).grey.astype(np.float64)):
        mx, my = blur(x), blur(y)
        vx, vy, vxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
        values.append(float(np.mean((2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2)))))
    return np.array(values)


@dataclass(frozen=True)
class Metric:
    """A figure of one video, as it is shown."""

    name: str
    label: str
    unit: str
    better: str | None
    """higher or lower; None where neither is."""
    measure: Callable[[Frames], float | int | None]


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("motion_strength", "Motion", "px/frame", None, motion_strength),
        Metric("flicker", "Flicker", "levels", "lower", flicker),
        Metric("warping_error", "Warping error", "", "lower", warping_error),
        Metric("vbench_temporal_flickering", "Temporal flickering (VBench)", "", "higher", vbench_temporal_flickering),
        Metric("sharpness", "Sharpness", "", "higher", sharpness),
        Metric("sharpness_kept", "Sharpness kept", "", "higher", sharpness_kept),
        Metric("tracking_persistence", "Points followed to the end", "", "higher", tracking_persistence),
        Metric("epipolar_error", "Epipolar error", "px", "lower", epipolar_error),
        Metric("matches_kept", "Matches that one camera explains", "", "higher", matches_kept),
        Metric("scene_cuts", "Cuts", "", "lower", scene_cuts),
        Metric("loop_gap", "Gap when looped", "levels", "lower", loop_gap),
        Metric("camera_right", "Camera to the right", "px/frame", None, camera_right),
        Metric("camera_down", "Camera down", "px/frame", None, camera_down),
        Metric("camera_zoom", "Zoom", "%/frame", None, camera_zoom),
    )
}
"""Those that need no weights."""


def measure(frames: np.ndarray, tick: Callable[[], object] = lambda: None) -> dict[str, float | int | None]:
    """All of METRICS, to four digits; ``tick`` is called all the while, and ends it by raising. None where a video is too short, or empty, for one. Raises VideoError for frames that are not uint8 [T, H, W, 3]."""
    clip = Frames(frames, tick)
    return {name: _rounded(metric.measure(clip)) for name, metric in METRICS.items()}


def faults(frames: np.ndarray) -> list[str]:
    """What is plainly wrong with a video, in words: blank, frozen, flickering, cut. Quick: no optical flow."""
    clip = Frames(frames)
    found = []
    if float(np.median([grey.std() for grey in clip.grey])) < BLANK:
        found.append("is blank")
    elif len(clip.steps) and float(clip.steps.max()) < STILL:
        found.append("stands still")
    if (flicker(clip) or 0.0) > FLICKERS:
        found.append("flickers")
    if places := cuts(clip):
        found.append(f"jumps to another scene at frame {', '.join(str(place + 1) for place in places[:3])}")
    return found


def compare(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Mean PSNR (at most 100 dB, so that equal frames count) and SSIM of two videos. Raises VideoError for different shapes."""
    return {"psnr": _rounded(float(np.minimum(psnr(a, b), 100).mean())), "ssim": _rounded(float(ssim(a, b).mean()))}


def _corners(grey: np.ndarray) -> np.ndarray:
    """Places that can be followed, [N, 2] float32 (Shi and Tomasi 1994)."""
    found = cv2.goodFeaturesToTrack(grey, POINTS, 0.01, 4)
    return np.zeros((0, 2), np.float32) if found is None else found[:, 0].astype(np.float32)


def _follow(a: np.ndarray, b: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where points of ``a`` are in ``b``, and which of them are found there and, going back, again at their place."""
    if not len(points):
        return points, np.zeros(0, bool)
    moved, there, _ = cv2.calcOpticalFlowPyrLK(a, b, points[:, None], None, winSize=(13, 13))
    back, again, _ = cv2.calcOpticalFlowPyrLK(b, a, moved, None, winSize=(13, 13))
    moved, back = moved[:, 0], back[:, 0]
    inside = (moved >= 0).all(1) & (moved <= np.array(b.shape[::-1]) - 1).all(1)
    return moved, (there[:, 0] == 1) & (again[:, 0] == 1) & inside & (np.linalg.norm(back - points, axis=1) < TRACKED)


def _usual(values: np.ndarray) -> float | None:
    """The median of what was found."""
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else None


def _rounded(value: float | int | None) -> float | int | None:
    return value if value is None or isinstance(value, int) else float(f"{value:.4g}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: exit status 2 where a video could not be measured, after all others were."""
    parser = argparse.ArgumentParser(prog="python -m core.metrics", description="Measure videos.")
    parser.add_argument("videos", nargs="+", metavar="VIDEO", type=Path)
    parser.add_argument("--against", type=Path, help="also PSNR, SSIM and LPIPS to this video")
    parser.add_argument("--clip", type=Path, help=f"CLIP's weights; found by themselves when downloaded with: hf download {CLIP_REPO} {CLIP_FILE}")
    parser.add_argument("--clip-model", help=f"open_clip's name of the architecture of --clip; that of a file in Hugging Face's cache is known, and else {CLIP_MODEL}")
    parser.add_argument("--aesthetic", type=Path, help=f"the aesthetic score's head, made for the weights of --clip; for OpenAI's ViT-B-32-quickgelu: {AESTHETIC_URL}")
    parser.add_argument("--clip-only", action="store_true", help="only what CLIP and the aesthetic score tell")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true")
    shape.add_argument("--csv", action="store_true")
    args = parser.parse_args(argv)
    clip = known_clip(args.clip) or Clip(args.clip) if args.clip else installed_clip()
    try:
        scorer = ClipScorer(clip.weights, args.clip_model or clip.model, args.aesthetic, clip.tag) if clip else None
        other = read_video(args.against) if args.against else None
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = []
    for path in args.videos:
        try:
            rows.append(_row(path, other, scorer, args.clip_only))
        except (OSError, RuntimeError, ValueError) as error:
            print(f"error: {path}: {error}", file=sys.stderr)
    _print_rows(rows, args)
    return 0 if len(rows) == len(args.videos) else 2


def _print_rows(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """What was measured, as JSON, as CSV with a column for whatever any video has, or as words."""
    if args.json:
        print(json.dumps(rows, indent=1))
    elif args.csv:
        columns = dict.fromkeys(name for row in rows for name in row if name != "clip_text_of_frames")
        writer = csv.DictWriter(sys.stdout, list(columns), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row | ({"faults": "; ".join(row["faults"])} if "faults" in row else {}) for row in rows)
    else:
        for row in rows:
            print(row.pop("video"))
            for name, value in row.items():
                metric = METRICS.get(name)
                label = f"{metric.label}{f', {metric.unit}' if metric.unit else ''}{f' ({metric.better} is better)' if metric.better else ''}" if metric else name
                print(f"  {label:<48} {'too short, or nothing to measure' if value is None else ', '.join(value) or 'none' if isinstance(value, list) and name == 'faults' else value}")


def _row(path: Path, other: np.ndarray | None, scorer: ClipScorer | None, clip_only: bool) -> dict[str, Any]:
    """All figures of a file."""
    frames = read_video(path)
    row: dict[str, Any] = {"video": str(path)}
    if not clip_only:
        row |= {**measure(frames), "faults": faults(frames)}
    if other is not None:
        row |= {**compare(frames, other), "lpips": lpips_distance(frames, other)}
    if scorer is None:
        return row | {"clip_text": CLIP_MISSING, "clip_consistency": CLIP_MISSING, "aesthetic": AESTHETIC_MISSING}
    return row | scorer.score(frames, (read_settings(path) or {}).get("prompt"))


if __name__ == "__main__":
    sys.exit(main())
