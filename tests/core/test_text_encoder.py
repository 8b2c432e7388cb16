import os

import pytest
import torch
from tiny import TEXT_DIM, tiny_text_encoder, tiny_tokenizer

from core.files import WriteError
from core.text_encoder import LazyTextEncoder, PromptCache, encode_prompts, fingerprint

PROMPTS = ["a small red ball", "", "a big blue box moves left"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    tiny_text_encoder().save_pretrained(folder / "text_encoder")
    return folder


class Counting(torch.nn.Module):
    """The encoder, and what it was asked to encode."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.asked, self.keywords = inner, [], set()

    def forward(self, input_ids, **others):
        self.asked += input_ids.tolist()
        self.keywords |= set(others)
        return self.inner(input_ids=input_ids, **others)


def test_shape_padding_and_no_mask():
    encoder = Counting(tiny_text_encoder())
    embeds = encode_prompts(PROMPTS, tiny_tokenizer(), encoder)
    assert embeds.shape == (3, 77, TEXT_DIM) and embeds.dtype == torch.float32
    assert not encoder.keywords  # padding is part of the conditioning
    assert [ids.count(0) for ids in encoder.asked] == [77 - 5, 77 - 1, 77 - 7]
    assert not torch.allclose(embeds[0], embeds[1])


def test_a_long_prompt_is_cut_off():
    long = "a small red ball " * 100
    assert encode_prompts([long], tiny_tokenizer(), tiny_text_encoder()).shape == (1, 77, TEXT_DIM)


def test_equal_prompts_are_encoded_once():
    encoder = Counting(tiny_text_encoder())
    embeds = encode_prompts(["", "a star", "", ""], tiny_tokenizer(), encoder)
    assert len(encoder.asked) == 2
    assert torch.equal(embeds[0], embeds[2]) and torch.equal(embeds[0], embeds[3])


def test_a_batch_equals_single_prompts():
    tokenizer, encoder = tiny_tokenizer(), tiny_text_encoder()
    single = torch.cat([encode_prompts([p], tokenizer, encoder) for p in PROMPTS])
    torch.testing.assert_close(encode_prompts(PROMPTS, tokenizer, encoder), single)
    torch.testing.assert_close(encode_prompts(PROMPTS, tokenizer, encoder, batch_size=2), single)


def test_cache_round_trip(tmp_path):
    encoder, cache = Counting(tiny_text_encoder()), PromptCache(tmp_path / "prompts", "one")
    first = encode_prompts(PROMPTS, tiny_tokenizer(), encoder, cache=cache)
    assert len(encoder.asked) == 3
    again = encode_prompts(PROMPTS[::-1], tiny_tokenizer(), encoder, cache=cache)
    assert len(encoder.asked) == 3
    assert torch.equal(again, first.flip(0))
    assert not [name for name in os.listdir(cache.folder) if not name.endswith(".safetensors") or name.startswith(".")]
    assert PromptCache(tmp_path / "prompts", "two").get("") is None


@pytest.mark.parametrize("text", ["emoji 🎈 and שלום", "line\nbreak\x1b", "\ud800 lone surrogate"])
def test_cache_takes_any_text(tmp_path, text):
    cache, embeds = PromptCache(tmp_path, "f"), torch.randn(77, 4)
    cache.put(text, embeds)
    assert torch.equal(cache.get(text), embeds)


@pytest.mark.parametrize("damage", [b"", b"not safetensors", None])
def test_a_corrupt_file_is_made_again(tmp_path, damage):
    encoder, cache = Counting(tiny_text_encoder()), PromptCache(tmp_path, "f")
    first = encode_prompts(["a star"], tiny_tokenizer(), encoder, cache=cache)
    path = cache.path("a star")
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    assert torch.equal(encode_prompts(["a star"], tiny_tokenizer(), encoder, cache=cache), first)
    assert len(encoder.asked) == 2
    assert cache.get("a star") is not None


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "prompts").write_text("a file, not a folder")
    with pytest.raises(WriteError, match="file stands where a folder should be"):
        PromptCache(tmp_path / "prompts", "f").put("a", torch.zeros(77, 4))


def test_with_a_full_cache_the_encoder_is_never_loaded(folder, tmp_path, monkeypatch):
    first = LazyTextEncoder(folder, tmp_path)
    assert not first.loaded
    embeds = first(PROMPTS)
    assert first.loaded

    from transformers import T5EncoderModel

    monkeypatch.setattr(T5EncoderModel, "from_pretrained", lambda *a, **k: pytest.fail("the encoder was loaded"))
    second = LazyTextEncoder(folder, tmp_path)
    assert torch.equal(second(PROMPTS), embeds) and not second.loaded
    with pytest.raises(pytest.fail.Exception, match="the encoder was loaded"):
        second(["something new"])


def test_lazy_equals_in_memory_and_can_be_released(folder, tmp_path):
    lazy = LazyTextEncoder(folder, tmp_path)
    torch.testing.assert_close(lazy(PROMPTS), encode_prompts(PROMPTS, tiny_tokenizer(), tiny_text_encoder()))
    lazy.release()
    assert not lazy.loaded and lazy(["a night"]).shape == (1, 77, TEXT_DIM)


def test_texts_are_kept_a_few_at_a_time_and_only_those_that_are_not_known(folder, tmp_path, monkeypatch):
    told, encoded = [], []
    monkeypatch.setattr("core.text_encoder._KEPT_AT_ONCE", 2)
    monkeypatch.setattr("core.text_encoder.encode_prompts", lambda texts, *loaded, cache: encoded.append(texts) or encode_prompts(texts, *loaded, cache=cache))
    lazy = LazyTextEncoder(folder, tmp_path)
    lazy(["a star"])
    encoded.clear()
    assert lazy.keep(["", *PROMPTS, "a star", "a night"], lambda done, of: told.append((done, of))) is None
    assert encoded == [["", PROMPTS[0]], [PROMPTS[2], "a night"]] and told == [(2, 4), (4, 4)]
    again = LazyTextEncoder(folder, tmp_path)
    again.keep(PROMPTS, lambda *_: pytest.fail("nothing was missing"))
    assert not again.loaded and torch.equal(again(PROMPTS), lazy(PROMPTS))


def test_what_is_released_goes_back_to_the_device_and_only_then(folder, tmp_path, monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("cuda"))
    lazy = LazyTextEncoder(folder, tmp_path)
    lazy.release()
    lazy.load()
    assert not emptied
    lazy.release()
    assert emptied == ["cuda"]


def test_eight_bits_are_near_and_have_a_cache_of_their_own(folder, tmp_path):
    plain, small = LazyTextEncoder(folder, tmp_path), LazyTextEncoder(folder, tmp_path, dtype=torch.bfloat16, eight_bits=True)
    exact, near = plain(PROMPTS), small(PROMPTS)
    assert small.loaded and not torch.equal(exact, near)
    assert torch.nn.functional.cosine_similarity(exact, near, dim=-1).min() > 0.98
    assert not [m for m in small.load()[1].modules() if type(m) is torch.nn.Linear]


def test_fingerprint_tells_encoders_apart(folder, tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    tiny_text_encoder(seed=1).save_pretrained(tmp_path / "text_encoder")
    assert fingerprint(folder) != fingerprint(tmp_path)
    tiny_text_encoder(seed=0).save_pretrained(tmp_path / "text_encoder")
    assert fingerprint(folder) == fingerprint(tmp_path)  # equal wherever it lies
    with pytest.raises(FileNotFoundError, match="no tokenizer/"):
        fingerprint(tmp_path / "nothing")
