"""What the benchmarks measure by, and how it is written down: calls that take turns, their medians, a table and a plot."""

from __future__ import annotations

import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from core.device import available_cpus

PROMPT = "a small red ball moves left to right over a green meadow"
"""What is asked for, wherever a prompt is needed."""


@dataclass(frozen=True)
class Row:
    """One measured call: the median of its rounds, and how many times as long as the first of its section it takes."""

    section: str
    name: str
    seconds: float
    rounds: int
    ratio: float
    taken: tuple[float, ...] = ()
    """The seconds of each round."""

    def times(self, other: Row) -> float:
        """How many times as long as ``other`` it takes: the median over rounds, whose calls follow each other, so that a machine that grows slower or faster meanwhile changes little."""
        return statistics.median(mine / theirs for mine, theirs in zip(self.taken, other.taken))


@dataclass(frozen=True)
class Count:
    """Something that was counted, or follows from what was measured: a line below the table."""

    words: str


@dataclass(frozen=True)
class Growth:
    """How ``what`` makes time and memory grow: names, seconds and bytes, the smallest first."""

    what: str
    points: list[tuple[str, float, int]]


def compare(section: str, calls: dict[str, Callable[[], object]], device: torch.device, budget: float, rounds: int = 3, clock: Callable[[], float] = time.perf_counter) -> Iterator[Row]:
    """Let ``calls`` take turns: one round to warm up, then ``rounds`` or as many as fit into ``budget`` seconds (one at least)."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    started = time.monotonic()
    for turn in range(rounds + 1):
        for name, call in calls.items():
            began = clock()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(clock() - began)
        if turn and (time.monotonic() - started) * (turn + 2) / (turn + 1) > budget:
            break
    first = None
    for name, (_, *taken) in times.items():
        row = Row(section, name, statistics.median(taken), turn, 1.0, tuple(taken))
        first = first or row
        yield replace(row, ratio=row.times(first))


def working_clock(device: torch.device) -> Callable[[], float]:
    """Seconds on ``device``: on a CPU those that this process had a processor, over its threads (which sleep while they wait: GOMP_SPINCOUNT is 0)."""
    return time.perf_counter if device.type == "cuda" else lambda: time.process_time() / torch.get_num_threads()


def table(rows: list[Row]) -> str:
    """Markdown; a section's first row is what the ratios are to."""
    lines = ["| what | how | median | ratio | rounds |", "|---|---|---:|---:|---:|"]
    section = None
    for row in rows:
        lines.append(f"| {row.section if row.section != section else ''} | {row.name} | {seconds_in_words(row.seconds)} | {row.ratio:.2f} | {row.rounds} |")
        section = row.section
    return "\n".join(lines)


def seconds_in_words(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"


def plot(growths: list[Growth]) -> str:
    """An SVG of all of them: time and memory relative to the smallest, on a logarithmic scale, over tokens relative to the smallest."""
    width, height, left, colours = 640, 320, 56, ("#2563eb", "#d97706", "#059669")
    largest = max(max(_tokens(name) for name, *_ in growth.points) / _tokens(growth.points[0][0]) for growth in growths)
    top = max(max(seconds / growth.points[0][1], memory / growth.points[0][2]) for growth in growths for _, seconds, memory in growth.points)

    def place(tokens: float, value: float) -> str:
        x = left + (width - left - 20) * math.log(tokens) / math.log(largest)
        return f"{x:.1f},{height - 40 - (height - 70) * math.log(max(value, 1)) / math.log(max(top, largest)):.1f}"

    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">', f'<rect width="{width}" height="{height}" fill="#fff"/>']
    lines += [f'<text x="{left}" y="{height - 8}">tokens, times the fewest (1 to {largest:.0f}); grey: in proportion; full: time, dashed: memory</text>', f'<polyline points="{place(1, 1)} {place(largest, largest)}" stroke="#999" fill="none"/>']
    for number, (growth, colour) in enumerate(zip(growths, colours)):
        _, first_seconds, first_memory = growth.points[0]
        for index, dash in ((1, ""), (2, ' stroke-dasharray="5 4"')):
            points = " ".join(place(_tokens(point[0]) / _tokens(growth.points[0][0]), point[index] / (first_seconds if index == 1 else first_memory)) for point in growth.points)
            lines.append(f'<polyline points="{points}" stroke="{colour}" fill="none" stroke-width="2"{dash}/>')
        lines.append(f'<text x="{left + 8}" y="{24 + 16 * number}" fill="{colour}">{growth.what}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _tokens(name: str) -> int:
    """Of a clip's name in a growth table."""
    width, height, frames, clips = (int(number) for number in re.findall(r"\d+", name))
    return width * height * frames * clips // 256


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
