"""What a text stands for: lines, alternatives, wildcards and settings of a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.types import GenerationRequest, RequestError
from studio.prompts import Line, as_requests, as_text, expand

FORM = {"model": "mira-nano", "preset": "nano-4s", "num_frames": 24, "guidance_scale": 4.0}


@pytest.fixture
def wildcards(tmp_path: Path) -> Path:
    (tmp_path / "colour.txt").write_text("# warm ones\nred\n\n{light|dark} orange\n")
    (tmp_path / "thing.txt").write_text("__colour__ ball\n")
    (tmp_path / "loop.txt").write_text("a __loop__\n")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("a red ball", ["a red ball"]),
        ("one\n\n# not this\n  two  \n", ["one", "two"]),
        ("{red|blue} ball {rises|falls}", ["red ball rises", "red ball falls", "blue ball rises", "blue ball falls"]),
        ("a {big {red|blue}|small} box", ["a big red box", "a big blue box", "a small box"]),
        ("a {very |}old star", ["a very old star", "a old star"]),
        ("a { |big} star", ["a star", "a big star"]),
        (r"a \{brace\} a \| b \__colour__", ["a {brace} a | b __colour__"]),
        ("a | b, snake_case, it's -- fine", ["a | b, snake_case, it's -- fine"]),
        ("a __colour__ box", ["a red box", "a light orange box", "a dark orange box"]),
        ("the __thing__", ["the red ball", "the light orange ball", "the dark orange ball"]),
        ("", []),
        ("כדור אדום 🎈", ["כדור אדום 🎈"]),
    ],
)
def test_a_text_makes_these_prompts(text: str, prompts: list[str], wildcards: Path) -> None:
    assert [line.prompt for line in expand(text, wildcards)] == prompts


def test_a_wildcard_file_is_read_once_however_often_others_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line of a file that names another one would read that one again, and so on: 30 lines three deep took a second at every key that was typed."""
    for name, inner in (("thing", "__place__"), ("place", "__colour__"), ("colour", "")):
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name}-{number} {inner}" for number in range(12)))
    read: list[str] = []
    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, **options: read.append(path.stem) or real(path, **options))
    with pytest.raises(RequestError, match="makes 1,728 prompts"):
        expand("__thing__", tmp_path)
    assert read == ["thing", "place", "colour"]
    assert len(expand("__place__ __colour__".replace("__colour__", "{a|b}"), tmp_path)) == 288


def test_settings_of_a_line(wildcards: Path) -> None:
    assert expand('a star --seed 7 --guidance_scale=9 --negative_prompt "dim, it\'s dark" --sampler ddim', wildcards) == [
        Line("a star", {"seed": 7, "guidance_scale": 9.0, "negative_prompt": "dim, it's dark", "sampler": "ddim"})
    ]
    assert expand("a star – it falls —seed 7 –negative_prompt “dim, dark”", wildcards) == [Line("a star – it falls", {"seed": 7, "negative_prompt": "dim, dark"})], "as phones write it"
    assert [line.settings for line in expand("a star --guidance_scale {2|4}", wildcards)] == [{"guidance_scale": 2.0}, {"guidance_scale": 4.0}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a {red ball", "{ without its }"),
        ("a red} ball", "} without its {"),
        ("a __color__ ball", "no wildcard __color__.*There are: colour, empty, loop, thing"),
        ("__loop__", "__loop__ contains itself"),
        ("an __empty__ box", "is empty: put one choice on each line"),
        ("a ball --sed 7", "--sed is not a setting. Did you mean 'seed'"),
        ("a ball --steps 20 --cfg_scale 7", "--steps is not a setting. Did you mean 'num_inference_steps'"),
        ("a ball --seed x", "^seed is 'x'; it must be a whole number"),
        ("a ball --seed", "--seed has no value"),
        ("a ball --seed 7 blue", "'blue' stands between settings"),
        ('a ball --negative_prompt "dark', "quotation mark"),
        ("fine\na ball --seed x", "^Line 2: seed"),
        (" ".join(["{a|b|c|d}"] * 6), "makes 4,096 prompts; at most 1,000"),
        (" ".join(["{a|b|c|d|e|f|g|h|i|j}"] * 300), "at most 1,000"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused_in_words(text: str, words: str, wildcards: Path) -> None:
    with pytest.raises(RequestError, match=words):
        expand(text, wildcards)


def test_requests_take_the_form_the_line_and_the_count(wildcards: Path) -> None:
    requests = as_requests("one\ntwo --seed 7 --guidance_scale 9", FORM, 3, 2, wildcards)
    assert [(r.prompt, r.seed, r.guidance_scale) for r in requests] == [("one", 3, 4.0), ("one", 4, 4.0), ("two", 7, 9.0), ("two", 8, 9.0)]
    assert all(r.num_frames == 24 for r in requests)
    with pytest.raises(RequestError, match="800 prompts with 2 videos each are 1,600 requests"):
        as_requests("x\n" * 800, FORM, 0, 2, wildcards)


def test_a_lines_preset_or_model_brings_its_own_size_and_sampling(wildcards: Path) -> None:
    short, other = as_requests("one --preset nano-2s\ntwo --model TencentARC/Mira-v0:128 --num_inference_steps 9", FORM, 0, 1, wildcards)
    assert short.resolved().num_frames == 12
    assert (other.resolved().preset, other.resolved().guidance_scale, other.num_inference_steps) == ("128-20s", 12.0, 9)


@pytest.mark.parametrize("prompt", ["plain", "a {b|c} d", "x __colour__ y __z", "# not a comment", "over --seed 7", "back\\slash \\{ |", "--seed", "a-b -- c_d __ e__", "over —seed 7", "a —strong — “wind”"])
def test_a_prompt_as_text_stands_for_itself_alone(prompt: str, wildcards: Path) -> None:
    assert expand(as_text(prompt), wildcards) == [Line(prompt)]


def test_an_empty_text_is_refused_as_an_empty_prompt(wildcards: Path) -> None:
    (request,) = as_requests(" \n", FORM, 0, 1, wildcards)
    with pytest.raises(RequestError, match="prompt is empty"):
        request.resolved()


def test_numbers_and_braces_beyond_all_measure_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"^seed is 1000.*; it must be from 0 to"):
        as_requests("a ball", {}, 10**400, 1, tmp_path)[0].resolved()
    with pytest.raises(RequestError, match=r"^guidance_scale is 1000.*; it must be a number"):
        GenerationRequest.from_dict({"guidance_scale": 10**400})
    with pytest.raises(RequestError, match="at most 10 deep"):
        expand("{" * 480 + "a" + "}" * 480, tmp_path)
    assert len(expand("{a|" * 10 + "b" + "}" * 10, tmp_path)) == 11
