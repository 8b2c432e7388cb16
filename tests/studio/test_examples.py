"""Prompts that a model can do, and words that the embedded one does not know."""

import pytest

from core.types import GenerationRequest
from studio.examples import REAL_PROMPTS, TOY_PROMPTS, TOY_WORDS, example_prompts, surprise, unknown_words
from training.toyworld import BACKGROUNDS, COLORS, SHAPES, SIZES, parse_caption


def test_a_surprise_is_a_caption_of_the_toy_world_and_another_one_each_time():
    drawn = {surprise("mira-nano", seed) for seed in range(40)}
    assert len(drawn) > 30 and all(parse_caption(prompt) for prompt in drawn)
    assert len({surprise("mira-nano") for _ in range(10)}) > 5
    assert surprise("TencentARC/Mira-v0:128") in REAL_PROMPTS


def test_what_the_page_offers_is_known_to_the_model():
    assert all(parse_caption(prompt) for prompt in TOY_PROMPTS) and example_prompts("mira-nano") == TOY_PROMPTS
    assert all(word in TOY_WORDS for word in (*COLORS, *SHAPES, *SIZES, *BACKGROUNDS))


@pytest.mark.parametrize(
    "prompt, words",
    [("A big red ball bounces over a meadow.", []), ("A DRAGON flies over the sea, a dragon!", ["dragon", "flies"]), ("", []), ("a red ball 3 times", ["times"]), ("a gre", []), ("a gre ball", ["gre"]), ("ein roter Ball über", ["ein", "roter", "über"])],
)  # fmt: skip
def test_unknown_words_are_named_once_in_their_order(prompt, words):
    assert unknown_words(GenerationRequest(prompt)) == words


def test_other_models_and_loras_may_know_more():
    assert unknown_words(GenerationRequest("a dragon", model="TencentARC/Mira-v0:128")) == []
    assert unknown_words(GenerationRequest("a dragon", loras="dragons")) == []
