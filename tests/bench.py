"""What a model costs on this machine, in one run of about two minutes: ``make bench``, or ``python tests/bench.py --model M``.

Calls that are compared take turns, so that both see the same machine; figures are medians of their turns.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import logging
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLTemporalDecoder, LatteTransformer3DModel
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core.checkpoints import CheckpointError, load_pipeline  # noqa: E402
from core.device import ResourceError, available_cpus, choose_device, choose_dtype  # noqa: E402
from core.files import replacing  # noqa: E402
from core.pipeline import MiraPipeline  # noqa: E402
from core.presets import NANO, Preset, default_preset  # noqa: E402
from core.schedulers import draw_noise  # noqa: E402
from core.text_encoder import LazyTextEncoder, encode_prompts  # noqa: E402
from core.transformer import MiraTransformer3DModel  # noqa: E402
from core.types import GenerationRequest  # noqa: E402
from core.vae import decode_latents  # noqa: E402
from core.whole_decode import decode_whole  # noqa: E402
from measure import peak_memory  # noqa: E402
from plain import plain_forward  # noqa: E402
from studio.library import Query  # noqa: E402
from studio.screen import Screen, Session  # noqa: E402
from studio.services import Services  # noqa: E402
from training.config import load_config  # noqa: E402
from training.targets.transformer import FrameEncoder, TransformerTask  # noqa: E402
from training.toyworld.folder import write_folder  # noqa: E402
from training.trainer import Trainer  # noqa: E402

PROMPT = "a small red ball moves left to right over a green meadow"
CROWD = 1000
"""Requests, and videos, of a studio that is used a lot."""
WIDE = 24, 80, 128
"""Frames, height and width of what is measured at Mira's width: as many frames as a CPU does in seconds."""
APP_SECONDS = 120
"""After which a page that has not come is given up."""


@dataclass(frozen=True)
class Row:
    """One measured call; ``ratio`` is how many times as long as the first of its section it takes."""

    section: str
    name: str
    seconds: float
    rounds: int
    ratio: float


def compare(section: str, calls: dict[str, Callable[[], object]], device: torch.device, budget: float, rounds: int = 3) -> Iterator[Row]:
    """Let ``calls`` take turns: one round to warm up, then ``rounds`` or as many as fit into ``budget`` seconds (one at least)."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    started = time.monotonic()
    for turn in range(rounds + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - began)
        if turn and (time.monotonic() - started) * (turn + 2) / (turn + 1) > budget:
            break
    medians = {name: statistics.median(taken[1:]) for name, taken in times.items()}
    first = next(iter(medians.values()))
    for name, seconds in medians.items():
        yield Row(section, name, seconds, turn, seconds / first)


@torch.no_grad()
def measure(model: str, device: torch.device, data_dir: Path) -> Iterator[Row | Count]:
    """All rows and counts, as they are measured. Raises CheckpointError for a model that is not there."""
    preset = default_preset(model)
    best = choose_dtype("auto", device)
    pipe = _quiet(load_pipeline(model, device, best, data_dir=data_dir))
    pipes = {_name(best): pipe}
    if best != torch.float32:
        pipes["fp32"] = _quiet(load_pipeline(model, device, torch.float32, data_dir=data_dir))

    step = "a denoising step with guidance"
    yield from compare(step, {name: _step(p, preset) for name, p in pipes.items()}, device, 25, rounds=9)
    yield from compare("guidance", {"both prompts in one forward": _step(pipe, preset), "two forwards": _step(pipe, preset, apart=True)}, device, 20, rounds=9)
    latents = _noise(pipe, preset)
    decode = {"whole": lambda: decode_latents(pipe.vae, latents), "chunks of 10 frames": lambda: decode_latents(pipe.vae, latents, chunk_frames=10)}
    yield from compare(f"decoding {preset.num_frames} frames", decode, device, 25)
    yield from _whole_decode(device)
    yield from _full_width(device)
    yield from _prompts(pipe, device)
    request = GenerationRequest(PROMPT, model=model, preset=preset.name, seed=0)
    videos = {name: lambda p=p: p.generate(request) for name, p in pipes.items()}
    yield from compare(f"a video ({preset.name}, {preset.num_inference_steps} steps)", videos, device, 60, rounds=1)
    del pipes, videos
    yield from _training(model, preset, device)
    yield from compare("the studio", {"from start to first page": _first_page}, torch.device("cpu"), 30)
    yield from _crowded_studio()


def _noise(pipe: MiraPipeline, preset: Preset) -> torch.Tensor:
    shape = preset.shape.latent(pipe.transformer.config.in_channels, pipe.vae_scale_factor).as_tuple(1)
    return draw_noise(shape, [torch.Generator("cpu").manual_seed(0)], pipe.device)


def _step(pipe: MiraPipeline, preset: Preset, apart: bool = False) -> Callable[[], object]:
    """One guided evaluation of the transformer, as the pipeline does it; ``apart`` evaluates the two prompts one after the other."""
    x_t = _noise(pipe, preset).to(pipe.transformer.dtype)
    context = pipe.encode_prompt([PROMPT, ""]).to(pipe.device, pipe.transformer.dtype)

    def forward(text: torch.Tensor) -> torch.Tensor:
        copies = len(text)
        timestep, fps = (torch.full((copies,), value, device=pipe.device) for value in (500, preset.fps))
        return pipe.transformer(x_t.expand(copies, -1, -1, -1, -1), timestep, text, fps).sample

    return (lambda: [forward(text[None]) for text in context]) if apart else (lambda: forward(context))


@dataclass(frozen=True)
class Count:
    """Something that was counted, or follows from what was measured: a line below the table."""

    words: str


def _full_width(device: torch.device) -> Iterator[Row | Count]:
    """A layer of Mira at its full width, both prompts of a guided step, against what others make of the same weights or sizes."""
    torch.manual_seed(0)
    frames, height, width = WIDE
    sizes = {"num_layers": 1, "num_attention_heads": 16, "attention_head_dim": 72}
    ours = MiraTransformer3DModel(**sizes).eval().to(device)
    without = MiraTransformer3DModel(**sizes, text_spatial_cond=False).eval().to(device)
    latte = LatteTransformer3DModel(
        **sizes, in_channels=4, out_channels=4, cross_attention_dim=1152, attention_bias=True, sample_size=64, patch_size=2, activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6, caption_channels=4096, video_length=frames,
    ).eval().to(device)  # fmt: skip
    latents, words = torch.randn(1, 4, frames, height // 8, width // 8, device=device), torch.randn(2, 77, 4096, device=device)
    both, steps, fps = latents.expand(2, -1, -1, -1, -1), torch.full((2,), 500, device=device), torch.full((2,), 8, device=device)
    text, text_without = ours.project_text(words), without.project_text(words)
    calls = {
        "ours": lambda: ours(both, steps, text, fps),
        "the original's order of work": lambda: [plain_forward(ours, latents, steps[:1], one[None], fps[:1]) for one in words],
        "ours, as Latte is (the text alone in cross-attention)": lambda: without(both, steps, text_without, fps),
        "diffusers' LatteTransformer3DModel": lambda: latte(both, steps, words),
    }
    side = 2048
    square = torch.randn(side, side, device=device)
    calls[f"a product of {side} x {side} matrices"] = lambda: square @ square
    rows = list(compare(f"one layer at full width, fp32, {width}x{height}x{frames}, both prompts", calls, device, 90, rounds=5))
    yield from rows
    work = {name: _work(calls[name]) for name in list(calls)[:2]}
    counted, theirs = work.values()
    reached = (counted / rows[0].seconds) / (2 * side**3 / rows[-1].seconds)
    yield Count(f"A layer at full width does {counted / theirs:.3f} of the work of the original's order ({counted / 1e12:.2f} against {theirs / 1e12:.2f} TFLOP) and reaches {100 * reached:.0f} % of the speed of a plain product of matrices.")


def _work(call: Callable[[], object]) -> int:
    """Floating-point operations of the products in a call."""
    with FlopCounterMode(display=False) as counted:
        call()
    return counted.get_total_flops()


def _whole_decode(device: torch.device) -> Iterator[Row | Count]:
    """The bounded-memory decode against diffusers' own, on a VAE of a quarter of Mira's width."""
    torch.manual_seed(0)
    frames, height, width = WIDE
    vae = AutoencoderKLTemporalDecoder(down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=(32, 64, 128, 128), layers_per_block=2).eval().to(device)
    latents = torch.randn(frames, 4, height // 8, width // 8, device=device)
    calls = {"layer by layer": lambda: decode_whole(vae, latents), "undivided": lambda: vae.decode(latents, num_frames=frames).sample}
    yield from compare(f"decoding {width}x{height}x{frames} whole, a quarter of Mira's width, fp32", calls, device, 30)
    ours, theirs = (peak_memory(call, device) for call in calls.values())
    work = [_work(call) for call in calls.values()]
    frames_ours, frames_theirs = (call() for call in calls.values())
    apart = float((frames_ours - frames_theirs).abs().max() / frames_theirs.abs().max())
    yield Count(f"Decoding layer by layer holds {ours / 1e6:.0f} MB at most, undivided {theirs / 1e6:.0f} MB ({ours / theirs:.2f} of it), with {work[0] / work[1]:.3f} of its work; the largest difference is {apart:.0e} of the largest value.")


def _prompts(pipe: MiraPipeline, device: torch.device) -> Iterator[Row]:
    """A prompt from the on-disk cache, through the encoder, and with the encoder's loading."""
    with tempfile.TemporaryDirectory() as folder:
        lazy = LazyTextEncoder(pipe.lazy_text_encoder.folder, folder, device, pipe.lazy_text_encoder.dtype)

        def miss() -> None:
            lazy.cache.path(PROMPT).unlink(missing_ok=True)
            lazy([PROMPT])

        def load() -> None:
            lazy.release()
            miss()

        lazy([PROMPT])
        yield from compare("a prompt", {"cached": lambda: lazy([PROMPT]), "encoded": miss, "encoder loaded, then encoded": load}, device, 15, rounds=5)


def _training(model: str, preset: Preset, device: torch.device) -> Iterator[Row]:
    """A LoRA's step on 4 clips of the preset's shape: with latents and prompt embeddings ready, and with both computed in the step."""
    with tempfile.TemporaryDirectory() as folder, torch.enable_grad():
        write_folder(Path(folder) / "clips", 5, num_frames=preset.num_frames, height=preset.height, width=preset.width)
        words = [f"model={model}", f"dataset={folder}/clips", f"data_dir={folder}", f"output_dir={folder}/run", f"num_frames=[{preset.num_frames}]", f"sizes=[{preset.width}x{preset.height}]"]
        config = load_config(ROOT / "training" / "configs" / "lora_nano.yaml", words)
        task = TransformerTask(config, device)
        trainer, numbers = Trainer(config, task), itertools.count()
        encode, takes = FrameEncoder(task.folder, task.device, task.dtype), task.dataset.takes[:4]
        tokenizer, encoder = task.text_encoder.load()

        def encoded() -> None:
            with torch.no_grad():
                latents = torch.stack([encode(take.frames()) for take in takes]).float()
                texts = encode_prompts([take.captions[0] for take in takes], tokenizer, encoder)
            fps = torch.tensor([round(take.fps, 2) for take in takes])
            trainer.train_step([{"latents": latents, "masks": None, "prompt_embeds": texts, "fps": fps}])

        calls = {"latents and prompts ready": lambda: trainer.train_step([task.batch(next(numbers))]), "encoded in the step": encoded, "fetching a batch alone": lambda: task.batch(next(numbers))}
        yield from compare(f"a training step (LoRA, 4 clips of {preset.num_frames} frames)", calls, device, 30)


def _crowded_studio() -> Iterator[Row]:
    """What the server does for an action of the page, from the button to the new panes, when there is a lot to show."""
    with tempfile.TemporaryDirectory() as folder:
        services = Services.open(folder, start_worker=False)
        try:
            request = GenerationRequest(PROMPT, seed=0).resolved()
            waiting = services.queue.enqueue_many([request] * CROWD)
            for number in range(CROWD):
                file = Path(folder) / f"{number}.mp4"
                file.write_bytes(b"")
                services.library.add(f"video-{number:04}", request.replace(seed=number), file, elapsed=4.0, created=float(number))
            screen, session = Screen(services), Session()

            def act(action: str, *ids: str) -> Callable[[], object]:
                turns = itertools.cycle(ids)
                return lambda: (screen.act(session, action, next(turns)), screen.paint(session))

            def search() -> None:
                session.query = Query() if session.query.search else Query("ball")
                screen.paint(session)

            calls = {
                "a new page": lambda: screen.paint(Session()),
                "a poll that finds nothing new": lambda: screen.paint(session),
                "queue one more": lambda: (services.queue.enqueue(request), screen.paint(session)),
                "put one first": act("first", *waiting[500:510]),
                "cancel one": act("cancel", *waiting[20:30]),
                "star a video": act("star", "video-0500"),
                "delete a video, with undo": lambda: (act("delete", "video-0700")(), act("undo", "")()),
                "search": search,
            }
            yield from compare(f"the studio with {CROWD:,} waiting requests and {CROWD:,} videos", calls, torch.device("cpu"), 20, rounds=9)
        finally:
            services.close()


def _first_page() -> None:
    """Start ``app.py``, wait for its page, stop it."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        log = Path(folder) / "app.log"
        with log.open("wb") as out:
            command = [sys.executable, "app.py", "--port", str(port), "--data-dir", str(Path(folder) / "data"), "--device", "cpu"]
            app = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)
        try:
            deadline = time.monotonic() + APP_SECONDS
            while not _answers(f"http://127.0.0.1:{port}/"):
                if app.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"The studio's page did not come within {APP_SECONDS} s: {log.read_text(errors='replace')[-500:]}")
                time.sleep(0.05)
        finally:
            app.terminate()
            app.wait(30)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as page:
            return page.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _quiet(pipe: MiraPipeline) -> MiraPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def machine(device: torch.device) -> str:
    """The machine, its load, the libraries and the threads, in one sentence."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    words = [f"{found[1] if found else platform.processor() or platform.machine()}, {available_cpus()} CPUs"]
    if hasattr(os, "getloadavg"):
        words[0] += f" (load {os.getloadavg()[0]:.1f} before the run)"
    if device.type == "cuda":
        words.append(torch.cuda.get_device_name(device))
    return ", ".join([*words, f"Python {platform.python_version()}", f"torch {torch.__version__}", f"{torch.get_num_threads()} threads"])


def table(rows: list[Row]) -> str:
    """Markdown; a section's first row is what the ratios are to."""
    lines = ["| what | how | median | ratio | rounds |", "|---|---|---:|---:|---:|"]
    section = None
    for row in rows:
        lines.append(f"| {row.section if row.section != section else ''} | {row.name} | {_seconds(row.seconds)} | {row.ratio:.2f} | {row.rounds} |")
        section = row.section
    return "\n".join(lines)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"


def main(argv: list[str] | None = None) -> int:
    """Exit status 0 when the table is written, 2 with one line for a model that cannot be measured."""
    parser = argparse.ArgumentParser(prog="make bench", description="Measure a model on this machine and write a table.")
    parser.add_argument("--model", default=NANO, help="what load_pipeline takes")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--data-dir", type=Path, default=Path("workspace"), help="where models are kept")
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "bench.md", help="the markdown file to write")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    device, rows, counts, started = choose_device(args.device), [], [], time.monotonic()
    try:
        where = machine(device)
        for row in measure(args.model, device, args.data_dir):
            if isinstance(row, Count):
                counts.append(row.words)
                print(row.words, flush=True)
            else:
                print(f"{row.section}, {row.name}: {_seconds(row.seconds)} ({row.ratio:.2f})", flush=True)
                rows.append(row)
    except (CheckpointError, ResourceError) as error:
        print(f"{parser.prog}: nothing was measured. {error}", file=sys.stderr)
        return 2
    text = f"# {args.model}: what it costs\n\n{datetime.date.today()}: {where}. Written by `make bench` in {time.monotonic() - started:.0f} s; a ratio is to the first row of its kind.\n\n{table(rows)}\n\n" + "".join(f"- {words}\n" for words in counts)
    with replacing(args.out) as work:
        work.write_text(text)
    print(f"\n{text}\n{args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
