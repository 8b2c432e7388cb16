"""What stands around the players of the Compare tab: the chosen videos, the settings that differ, the file, and the blind test."""

from __future__ import annotations

from collections.abc import Sequence

from ..comparison import LETTERS, MOST, Work, measure_title, measure_words
from ..library import Video
from ..settings_words import differing, labels, title, value_words
from ..votes import Pair, Rate
from .words import escape, file_url


def compare_button(video: Video) -> str:
    """Adds a video to the comparison."""
    return f'<button class="small" data-action="compare" data-id="{video.id}" title="Adds it to the Compare tab, up to {MOST} videos" aria-label="Compare: {escape(video.request.prompt)}">Compare</button>'


def render_tray(videos: Sequence[Video], total: int, coming: int = 0) -> str:
    """The chosen videos in their order, or what to do; ``total`` is how many there are to choose from, ``coming`` how many more of the chosen ones are still to be made."""
    if not videos and coming:
        return f'<div class="tray-empty"><h2>Videos under one clock</h2><p>{coming} are being made. They come here as they are ready.</p></div>'
    if not videos:
        newest = '<button class="small strong" data-action="compare-newest">Compare the two newest</button>' if total > 1 else ""
        words = "Press Compare below a video, in the viewer or in the gallery, to bring two to four of them here." if total > 1 else "Two videos are needed. Make some on the Generate tab, then press Compare below each."
        return f'<div class="tray-empty"><h2>Videos under one clock</h2><p>{words}</p>{newest}</div>'
    rows = "".join(_chosen(index, video, label) for index, (video, label) in enumerate(zip(videos, labels([video.request for video in videos], but="prompt"), strict=True)))
    short = f'<p class="note">{coming} more to come.</p>' if coming else '<p class="note">Add another one: press Compare below it, in the viewer or in the gallery.</p>' if len(videos) == 1 else ""
    clear = '<span class="tools"><button class="quiet" data-action="compare-clear">Clear</button></span>'
    return f'<div class="panel-head"><h2>Compared</h2><span class="badge">{len(videos)} of {MOST}</span>{clear}</div><ol class="chosen">{rows}</ol>{short}'


def _chosen(index: int, video: Video, label: str) -> str:
    prompt = escape(video.request.prompt)
    poster = f'<img src="{file_url(video.poster)}" alt="">' if video.poster else ""
    swap = (
        f'<button class="quiet" data-action="compare-earlier" data-id="{video.id}" title="Swap with {LETTERS[index - 1]}" aria-label="Swap {LETTERS[index]} with {LETTERS[index - 1]}">⇄ {LETTERS[index - 1]}</button>' if index else ""
    )
    return (
        f'<li><b>{LETTERS[index]}</b>{poster}<span class="chosen-words"><span class="chosen-prompt" title="{prompt}" dir="auto">{prompt}</span><span class="card-line">{escape(label)}</span></span>'
        f'{swap}<button class="quiet" data-action="compare-remove" data-id="{video.id}" title="Take it out" aria-label="Take {LETTERS[index]} out">✕</button></li>'
    )


def render_facts(videos: Sequence[Video], measured: Work | None, exported: Work | None, measures: Work | None = None) -> str:
    """The settings that differ, what was measured on each, and the file of all videos beside each other."""
    if len(videos) < 2:
        return ""
    requests = [video.request for video in videos]
    names = differing(requests)
    failed = [f"{words} {work.error}" for words, work in (("The differences cannot be shown.", measured), ("The videos cannot be measured.", measures)) if work and work.error]
    error = f'<div class="alert" role="alert">{escape(" ".join(failed))}</div><p class="file"><button class="small" data-action="compare-again">Try again</button></p>' if failed else ""
    if names:
        head = "".join(f'<th scope="col">{letter}</th>' for letter in LETTERS[: len(videos)])
        rows = "".join(f'<tr><th scope="row">{escape(title(name))}</th>{"".join(f"<td>{escape(value_words(name, getattr(request, name)))}</td>" for request in requests)}</tr>' for name in names)
        table = f'<div class="scroll"><table class="facts"><caption>Settings that differ</caption><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    else:
        table = '<p class="note">These videos were made with the same settings.</p>'
    return f"{error}{table}{_measures(measures, len(videos))}{_file(exported)}"


def _measures(work: Work | None, count: int) -> str:
    """A table of figures with the better one marked, where there is a better."""
    from core.learned_metrics import CLIP_METRICS, CLIP_MISSING
    from core.metrics import METRICS

    if work is None or work.error:
        return ""
    if not work.done:
        return '<p class="note">Measuring …</p>'
    rows = []
    for name in [*METRICS, *(name for name in ("psnr", "ssim", *CLIP_METRICS) if any(name in found for found in work.result))]:
        values = [found.get(name) for found in work.result]
        best = best_of(values, METRICS[name].better if name in METRICS else "higher" if name in CLIP_METRICS else None)
        cells = "".join(f'<td>{measure_words(value)}{" <span class=better>better</span>" if index == best else ""}</td>' for index, value in enumerate(values))
        docs = " ".join(((METRICS[name].measure.__doc__ if name in METRICS else "") or "").split())
        rows.append(f'<tr><th scope="row" title="{escape(docs)}">{escape(measure_title(name))}</th>{cells}</tr>')
    if not any(name in found for name in CLIP_METRICS for found in work.result):
        rows.append(f'<tr><th scope="row">{CLIP_METRICS["clip_text"]}</th><td colspan="{count}">{escape(CLIP_MISSING)}</td></tr>')
    head = "".join(f'<th scope="col">{letter}</th>' for letter in LETTERS[:count])
    return f'<div class="scroll"><table class="facts"><caption>Measured on the frames</caption><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def best_of(values: Sequence[float | None], better: str | None) -> int | None:
    """Which value is clearly the best: by more than a twentieth of it; None where none is, or where there is no better."""
    known = sorted((value for value in values if value is not None), reverse=better == "higher")
    if better is None or len(known) < 2 or abs(known[0] - known[1]) <= 0.05 * max(abs(known[0]), abs(known[1])):
        return None
    return values.index(known[0])


def _file(exported: Work | None) -> str:
    if exported is None:
        return '<p class="file"><button class="small" data-action="compare-export" title="An mp4 with all of them side by side, labelled, with their settings inside">Make a labelled mp4</button></p>'
    if exported.error:
        return f'<div class="alert" role="alert">{escape(exported.error)}</div><p class="file"><button class="small" data-action="compare-export">Try again</button></p>'
    if not exported.done:
        return f'<p class="file"><progress max="1" value="{exported.share:.1f}" aria-label="Making the mp4">{exported.share:.0%}</progress><span class="note">Making the mp4 …</span></p>'
    return f'<p class="file"><a class="small strong" href="{file_url(str(exported.result))}" download="comparison.mp4">Download the labelled mp4</a></p>'


def render_blind(settings: dict[str, int] | None, chosen: str | None, pair: Pair | None, prompt: str) -> str:
    """The choice of what is judged; ``settings`` is None while the test is closed, else the number of pairs of each."""
    about = "<p>Two videos of the same prompt and seed that differ in one setting, in an order drawn by chance. You say which is better before you know which is which.</p>"
    if settings is None:
        return f'<div class="panel-head"><h2>Blind test</h2><span class="tools"><button class="small" data-action="blind-open">Start a blind test</button></span></div><div class="blind-words">{about}</div>'
    close = '<span class="tools"><button class="quiet" data-action="blind-close">Close</button></span>'
    if not settings:
        words = "<p>There is no such pair yet. Use the settings of a video, keep its seed, change one thing (steps, sampler, guidance or model), and generate again.</p>"
        return f'<div class="panel-head"><h2>Blind test</h2>{close}</div><div class="blind-words">{about}{words}</div>'
    buttons = "".join(
        f'<button class="small" data-action="blind" data-id="{name}" aria-pressed="{str(name == chosen).lower()}">{escape(title(name))}<span class="note">{count} {"pair" if count == 1 else "pairs"}</span></button>'
        for name, count in settings.items()
    )
    now = f'<p class="caption-prompt" dir="auto">{escape(prompt)}</p>' if pair else '<p class="note">What should be judged?</p>' if chosen is None else '<p class="note">No pair is left that differs in this only.</p>'
    return f'<div class="panel-head"><h2>Blind test</h2>{close}</div><div class="blind-words">{about}</div><div class="judged" role="group" aria-label="What is judged">{buttons}</div>{now}'


def render_verdict(chosen: str | None, pair: Pair | None, rates: Sequence[Rate], count: int) -> str:
    """The three votes, and the win rates so far."""
    if chosen is None:
        return ""
    parts = []
    if pair:
        votes = (("a", "A is better", "1"), ("b", "B is better", "2"), ("tie", "No difference", "0"))
        buttons = "".join(f'<button class="small" data-action="vote" data-id="{choice},{",".join(pair)}" data-vote="{key}" title="Key {key}">{words} <kbd>{key}</kbd></button>' for choice, words, key in votes)
        parts.append(f'<div class="vote-buttons" role="group" aria-label="Your vote">{buttons}</div>')
    if rates:
        rows = "".join(_rate(chosen, rate) for rate in rates)
        head = "<th scope='col'>Won</th><th scope='col'>95 % interval</th><th scope='col'>Wins</th><th scope='col'>Losses</th><th scope='col'>Ties</th>"
        hint = "" if any(rate.better for rate in rates) else " None is surely better yet."
        parts.append(
            f'<div class="scroll"><table class="facts"><caption>{escape(title(chosen))}: {count} {"vote" if count == 1 else "votes"}</caption><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
            f'<p class="note">Of the votes that chose one. Better is marked where the whole interval lies above 50 %.{hint}</p>'
        )
    return "".join(parts)


def _rate(setting: str, rate: Rate) -> str:
    low, high = rate.interval
    share = "–" if rate.share is None else f"{rate.share:.0%}"
    interval = "–" if rate.share is None else f"{low:.0%} to {high:.0%}"
    mark = ' <span class="better">better</span>' if rate.better else ""
    numbers = "".join(f"<td>{number}</td>" for number in (share, interval, rate.wins, rate.losses, rate.ties))
    return f'<tr><th scope="row">{escape(value_words(setting, rate.value))}{mark}</th>{numbers}</tr>'
