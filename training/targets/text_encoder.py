"""Train the tiny T5 encoder and its tokenizer on Toy World captions.

The encoder learns to say, from the mean of its token states, every attribute that the caption names. Colour and shape are
read by separate heads, and the held-out pairs are never seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from ..config import TrainConfig
from ..toyworld import VOCABULARY, captions, sample_spec
from ..trainer import step_rng

MAX_TOKENS = 77
ATTRIBUTES = ("size", "color", "shape", "motion", "background", "camera", "second_size", "second_color", "second_shape")


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
    values |= {f"second_{name}": [None, *values[name]] for name in ("size", "color", "shape")}
    return {name: list(v) for name, v in values.items()}


class AttributeReader(nn.Module):
    """The encoder with one linear head an attribute."""

    def __init__(self, encoder: T5EncoderModel):
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict({name: nn.Linear(encoder.config.d_model, len(v)) for name, v in attribute_values().items()})

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        states = self.encoder(input_ids=input_ids).last_hidden_state.mean(1)  # B D
        return {name: head(states) for name, head in self.heads.items()}


class TextEncoderTask:
    """Cross-entropy of every attribute, on short and dense captions in equal shares."""

    casts_weights = False

    def __init__(self, config: TrainConfig, device: torch.device):
        self.config, self.device = config, device
        self.tokenizer = build_tokenizer()
        self.t5_config = T5Config(vocab_size=len(self.tokenizer), pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, **{"dropout_rate": 0.0, "feed_forward_proj": "gated-gelu", **config.architecture})
        self.network = self.model = AttributeReader(T5EncoderModel(self.t5_config)).to(device).train()
        self.values = attribute_values()

    def batch(self, step: int) -> dict[str, Any]:
        """``input_ids`` [B, 77] and the index of each attribute's value [B]."""
        rng, stage = step_rng(self.config.seed, step), self.config.stage_at(step)
        specs = [sample_spec(rng) for _ in range(stage.train_batch_size)]
        texts = [captions(spec, rng)["short_caption" if rng.random() < 0.5 else "dense_caption"] for spec in specs]
        ids = self.tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt").input_ids
        labels = {name: torch.tensor([v.index(getattr(s, name)) for s in specs]) for name, v in self.values.items()}
        return {"input_ids": ids, "labels": labels}

    def loss(self, batch: dict[str, Any], step: int) -> tuple[torch.Tensor, dict[str, float]]:
        logits = self.model(batch["input_ids"].to(self.device))
        labels = {name: value.to(self.device) for name, value in batch["labels"].items()}
        total = sum(F.cross_entropy(logits[name].float(), labels[name]) for name in logits)
        right = torch.stack([(logits[name].argmax(-1) == labels[name]).float().mean() for name in logits])
        return total, {"accuracy": float(right.mean()), "worst": float(right.min())}

    def save(self, folder: Path, weights: dict[str, torch.Tensor], step: int) -> None:
        """``folder/text_encoder`` and ``folder/tokenizer``; the heads have done their work and stay behind."""
        encoder = T5EncoderModel(self.t5_config)
        prefix = "encoder."
        missing, unexpected = encoder.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}, strict=False)
        if unexpected or [k for k in missing if "embed_tokens" not in k]:
            raise RuntimeError(f"The encoder's weights do not fit: missing {missing}, left over {unexpected}.")
        encoder.save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")
