"""Train the tiny T5 encoder and its tokenizer on Toy World captions.

The encoder learns to say every attribute that the caption names, and at each word of an object which of two it belongs to, at each direction whether
the object or the camera goes there. Colour and shape are read by separate heads, and the held-out pairs are never seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from ..config import TrainConfig
from ..toyworld import VOCABULARY, ClipSpec, captions, sample_spec
from ..toyworld.captions import direction_spans, object_spans
from ..trainer import step_rng
from .transformer import model_folder

MAX_TOKENS = 77
OF_OBJECTS = ("size", "color", "shape")
SIDEWAYS_MOTIONS, SIDEWAYS_CAMERAS = ("moves left", "moves right"), ("pans left", "pans right")
NOTHING = -100
"""Of words that say nothing of an attribute: no label for the cross-entropy."""
HITS, SIDEWAYS = 0.5, 0.25
"""Share of captions that surely have two objects, and of those that surely have a direction twice, of an object and of the camera: what they say hangs on the order of their words."""
OWNERS = ("main object", "second object", "camera")
"""Whose a word can be."""
KEEPING = 20.0
"""Weight of how far the other captions move from what they were, over the variance of the states."""
NEARNESS, AVERSION = 0.5, 6.0
"""How much less each bucket of distance counts for a head that looks one way, and how much less the other way does, in logits."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Lower-cased words of the toy world as one token each; other words fall apart into letters. Ends with ``</s>`` as T5's does."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"-()"
    words = sorted({w.lower() for w in VOCABULARY} - set(letters))
    vocabulary = ["<pad>", "</s>", "<unk>", *letters, *("##" + c for c in letters), *words]
    tokenizer = Tokenizer(models.WordPiece({t: i for i, t in enumerate(dict.fromkeys(vocabulary))}, unk_token="<unk>", max_input_chars_per_word=200))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=MAX_TOKENS)


def attribute_values() -> dict[str, list[str | None]]:
    """Each attribute's possible values; None stands for a second object that isn't there."""
    from ..toyworld import BACKGROUNDS, CAMERAS, COLORS, MOTIONS, SHAPES, SIZES

    values = {"size": SIZES, "color": COLORS, "shape": SHAPES, "motion": MOTIONS, "background": BACKGROUNDS, "camera": CAMERAS}
    values |= {f"second_{name}": [None, *values[name]] for name in OF_OBJECTS}
    return {name: list(v) for name, v in values.items()}


def look_both_ways(encoder: T5EncoderModel) -> None:
    """Have the first head look to the left and the second to the right, at what is near above all.

    The table of relative positions is all that tells a T5 encoder in which order words come. It begins near zero, where one word of seventy-seven (most of
    them padding, which Mira's encoder doesn't mask) hardly moves it: the encoder learns which words there are and never who does what to whom.
    """
    table = encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # buckets, heads
    half = len(table) // 2  # the left ones, then the right ones
    if table[half:, 0].mean() < -AVERSION / 2:  # a run that goes on from one that has learned it
        return
    distance = torch.arange(half, dtype=table.dtype)
    with torch.no_grad():
        for head, (near, far) in enumerate(((slice(half), slice(half, None)), (slice(half, None), slice(half)))):
            table[near, head] -= NEARNESS * distance
            table[far, head] -= AVERSION


class AttributeReader(nn.Module):
    """The encoder with what reads its states as the transformer's cross-attention does: each attribute by a query of its own, and from each word of an object or a direction whose it is."""

    def __init__(self, encoder: T5EncoderModel):
        super().__init__()
        values, width = attribute_values(), encoder.config.d_model
        self.encoder = encoder
        self.queries = nn.Parameter(0.1 * torch.randn(len(values), width))
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(v)) for name, v in values.items()})
        self.word_heads = nn.ModuleDict({"owner": nn.Linear(width, len(OWNERS)), **{name: nn.Linear(width, len(values[name])) for name in OF_OBJECTS}})

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Of ``input_ids`` [B, L] the states [B, L, D], and the logits [B, values] of each attribute."""
        states = self.encoder(input_ids=input_ids).last_hidden_state
        seen = F.layer_norm(states, states.shape[-1:])
        shares = (self.queries @ seen.transpose(1, 2)).softmax(-1)  # B attributes L
        return states, {name: head(found) for (name, head), found in zip(self.heads.items(), (shares @ seen).unbind(1))}

    def read_words(self, states: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits [words, values] of the owner that each of ``states`` [words, D] has, and of that one's attributes."""
        seen = F.layer_norm(states, states.shape[-1:])
        return {name: head(seen) for name, head in self.word_heads.items()}


def _drawn(rng: np.random.Generator) -> ClipSpec:
    """A clip whose caption is read."""
    kind = rng.random()
    if kind < HITS:
        return sample_spec(rng, motion="hits")
    if kind < HITS + SIDEWAYS:
        return sample_spec(rng, motion=str(rng.choice(SIDEWAYS_MOTIONS)), camera=str(rng.choice(SIDEWAYS_CAMERAS)))
    return sample_spec(rng)


def _hangs_on_order(spec: ClipSpec) -> bool:
    """Whether other clips have the same words in their caption."""
    return spec.motion == "hits" or (spec.motion in SIDEWAYS_MOTIONS and spec.camera in SIDEWAYS_CAMERAS)


class TextEncoderTask:
    """Cross-entropy of every attribute, on short and dense captions in equal shares; three quarters of them hang on the order of their words.

    From a ``model`` it goes on with that one's encoder, and keeps what the others say as it was: a transformer has learned to read it.
    """

    casts_weights = False

    def __init__(self, config: TrainConfig, device: torch.device):
        self.config, self.device = config, device
        self.values = attribute_values()
        self.before: T5EncoderModel | None = None
        if config.model:
            folder = model_folder(config)
            self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
            encoder, self.before = (T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).to(device) for _ in range(2))
            self.before.requires_grad_(False).eval()
        else:
            self.tokenizer = build_tokenizer()
            encoder = T5EncoderModel(T5Config(vocab_size=len(self.tokenizer), pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, **{"dropout_rate": 0.0, "feed_forward_proj": "gated-gelu", **config.architecture}))
        self.t5_config = encoder.config
        look_both_ways(encoder)
        self.network = self.model = AttributeReader(encoder).to(device).train()

    def batch(self, step: int) -> dict[str, Any]:
        """``input_ids`` [B, 77], the index of each attribute's value [B] and which captions hang on their order [B]; of the words that are asked for their places
        (two of [words]), whose they are and what they say of it [words], -100 where they say nothing."""
        rng, stage = step_rng(self.config.seed, step), self.config.stage_at(step)
        specs = [_drawn(rng) for _ in range(stage.train_batch_size)]
        texts = [captions(spec, rng)["short_caption" if rng.random() < 0.5 else "dense_caption"] for spec in specs]
        found = self.tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt", return_offsets_mapping=True)
        labels = {name: torch.tensor([v.index(getattr(s, name)) for s in specs]) for name, v in self.values.items()}
        words = []
        for i, (spec, text) in enumerate(zip(specs, texts)):
            asked = []
            for owner, span in enumerate(object_spans(text)):
                asked.append((span, owner, [self.values[name].index(getattr(spec, f"second_{name}" if owner else name)) for name in OF_OBJECTS]))
            for owner, spans in zip((OWNERS.index("main object"), OWNERS.index("camera")), direction_spans(text)):
                asked += [(span, owner, [NOTHING] * len(OF_OBJECTS)) for span in spans]
            for (start, end), owner, own in asked:
                words += [(i, k, owner, *own) for k, (a, b) in enumerate(found.offset_mapping[i].tolist()) if start <= a < b <= end]
        row, token, *of_word = torch.tensor(words).unbind(1)
        ordered = torch.tensor([_hangs_on_order(spec) for spec in specs])
        return {"input_ids": found.input_ids, "labels": labels, "ordered": ordered, "places": (row, token), "word_labels": dict(zip(("owner", *OF_OBJECTS), of_word))}

    def loss(self, batch: dict[str, Any], step: int) -> tuple[torch.Tensor, dict[str, float]]:
        input_ids, ordered = batch["input_ids"].to(self.device), batch["ordered"].to(self.device)
        states, logits = self.model(input_ids)
        word_logits = self.model.read_words(states[tuple(place.to(self.device) for place in batch["places"])])
        labels, word_labels = ({name: value.to(self.device) for name, value in batch[kind].items()} for kind in ("labels", "word_labels"))
        total = sum(F.cross_entropy(logits[name].float(), labels[name]) for name in logits) + sum(F.cross_entropy(word_logits[name].float(), word_labels[name]) for name in word_logits)
        right = torch.stack([(logits[name].argmax(-1) == labels[name]).float() for name in logits])  # attributes B
        figures = {"accuracy": float(right.mean()), "owner": float((word_logits["owner"].argmax(-1) == word_labels["owner"]).float().mean())}
        if ordered.any():
            figures["worst"] = float(right[:, ordered].mean(1).min())  # of the attributes
        if self.before is not None and not ordered.all():
            was = self.before(input_ids=input_ids[~ordered]).last_hidden_state
            moved = (states[~ordered] - was).square().mean() / was.var()
            total, figures = total + KEEPING * moved, {**figures, "moved": float(moved.detach())}
        return total, figures

    def save(self, folder: Path, weights: dict[str, torch.Tensor], step: int) -> None:
        """``folder/text_encoder`` and ``folder/tokenizer``; the heads have done their work and stay behind."""
        encoder = T5EncoderModel(self.t5_config)
        prefix = "encoder."
        missing, unexpected = encoder.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}, strict=False)
        if unexpected or [k for k in missing if "embed_tokens" not in k]:
            raise RuntimeError(f"The encoder's weights do not fit: missing {missing}, left over {unexpected}.")
        encoder.save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")
