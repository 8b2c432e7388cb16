"""Prompts to ``prompt_embeds`` with a T5 encoder, and the on-disk cache that spares loading it.

Mira's text conditioning: the last hidden state of flan-t5-xxl for 77 tokens, padded with ``padding="max_length"`` and *without* an
attention mask, so that the padding is part of the conditioning. The embedded model's tiny T5 is used in exactly the same way.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .device import release_memory, require_memory, weights_memory
from .files import replacing
from .originals import CheckpointError, first_line, some

logger = logging.getLogger(__name__)

MAX_LENGTH = 77
"""Tokens of a prompt; the rest is cut off."""
_SAMPLE_BYTES = 2**20
_KEPT_AT_ONCE = 64
"""Texts whose embeddings are in memory together where they are only to be kept: 80 MB of flan-t5-xxl's."""


class PromptCache:
    """One safetensors file a prompt in ``folder``, named by the encoder's ``fingerprint`` and the text.

    Files are written whole or not at all; one that cannot be read is made again.
    """

    def __init__(self, folder: str | Path, fingerprint: str):
        self.folder, self.fingerprint = Path(folder), fingerprint

    def path(self, text: str) -> Path:
        return self.folder / (hashlib.sha256(f"{self.fingerprint}\n{text}".encode("utf-8", "surrogatepass")).hexdigest() + ".safetensors")

    def get(self, text: str) -> Tensor | None:
        """The embeddings ``[L, D]`` of ``text`` in the dtype they were computed in, or None."""
        path = self.path(text)
        try:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor("prompt_embeds")
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            logger.warning("The cached prompt %s cannot be read (%s); it is made again.", path, error)
            return None

    def put(self, text: str, prompt_embeds: Tensor) -> None:
        """Keep ``prompt_embeds [L, D]``. Raises WriteError when the folder cannot be written."""
        with replacing(self.path(text)) as temporary:
            save_file({"prompt_embeds": prompt_embeds.detach().cpu().contiguous()}, temporary)


@torch.no_grad()
def encode_prompts(
    prompts: Sequence[str],
    tokenizer: Any,
    text_encoder: torch.nn.Module,
    max_length: int = MAX_LENGTH,
    cache: PromptCache | None = None,
    batch_size: int = 8,
) -> Tensor:
    """``prompts`` to embeddings ``[B, max_length, D]``, float32 on the encoder's device. Equal prompts are encoded once."""
    found = _from_cache(prompts, cache)
    missing = [text for text in dict.fromkeys(prompts) if text not in found]
    device = next(text_encoder.parameters()).device
    for start in range(0, len(missing), batch_size):
        texts = missing[start : start + batch_size]
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=max_length, return_tensors="pt")
        embeds = text_encoder(input_ids=tokens.input_ids.to(device)).last_hidden_state  # b L D
        for text, embed in zip(texts, embeds):
            found[text] = embed
            if cache is not None:
                cache.put(text, embed)
    return torch.stack([found[text].to(device, torch.float32) for text in prompts])


def _from_cache(prompts: Iterable[str], cache: PromptCache | None) -> dict[str, Tensor]:
    if cache is None:
        return {}
    cached = {text: cache.get(text) for text in dict.fromkeys(prompts)}
    return {text: embeds for text, embeds in cached.items() if embeds is not None}


class LazyTextEncoder:
    """The ``tokenizer/`` and ``text_encoder/`` of a model folder, loaded at the first prompt that the cache does not hold.

    Args:
        folder: A diffusers model folder, or what finds one (and may download it) once it is needed; then ``known_as`` is its fingerprint.
        cache_dir: Where prompt embeddings are kept; shared by all models, as the file names carry the encoder's fingerprint.
        device, dtype: Where and in what the encoder runs once it is loaded.
        eight_bits: Whether its linear layers keep their weights in 8 bits (torch's dynamic quantisation, CPU only); the rest is fp32.
        stays: Whether it keeps its device whatever device the model is on.
    """

    def __init__(
        self,
        folder: str | Path | Callable[[], Path],
        cache_dir: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        eight_bits: bool = False,
        stays: bool = False,
        known_as: str | None = None,
    ):
        self._folder = folder if callable(folder) else Path(folder)
        self.device, self.dtype, self.eight_bits, self.stays = torch.device(device), dtype, eight_bits, stays
        kind = "int8" if eight_bits else str(dtype).removeprefix("torch.")
        self.cache = PromptCache(cache_dir, f"{known_as or fingerprint(self.folder)} {kind} {MAX_LENGTH}")
        self._loaded: tuple[Any, torch.nn.Module] | None = None

    @property
    def folder(self) -> Path:
        """Where its files are; downloaded now if they were not here."""
        if callable(self._folder):
            self._folder = self._folder()
        return self._folder

    @property
    def loaded(self) -> bool:
        """Whether the encoder is in memory."""
        return self._loaded is not None

    def knows(self, prompts: Sequence[str]) -> bool:
        """Whether the embeddings of all ``prompts`` are in the cache, so that the encoder is not needed."""
        return all(self.cache.path(text).exists() for text in prompts)

    def keep(self, texts: Iterable[str], progress: Callable[[int, int], None] | None = None) -> None:
        """Have the embeddings of all ``texts`` in the cache, however many there are; ``progress`` hears how many of the missing ones are, and how many were missing. Raises WriteError."""
        missing = [text for text in dict.fromkeys(texts) if not self.knows([text])]
        for start in range(0, len(missing), _KEPT_AT_ONCE):
            chunk = missing[start : start + _KEPT_AT_ONCE]
            encode_prompts(chunk, *self.load(), cache=self.cache)
            if progress is not None:
                progress(start + len(chunk), len(missing))

    def load(self) -> tuple[Any, torch.nn.Module]:
        """``(tokenizer, text_encoder)``, loaded now if they were not. Raises MemoryShortage where they do not fit, or CheckpointError."""
        if self._loaded is None:
            tokenizer, text_encoder = self.read()
            if self.eight_bits:
                _to_eight_bits(text_encoder)
            self._loaded = tokenizer, text_encoder.eval().requires_grad_(False).to(self.device)
        return self._loaded

    def read(self) -> tuple[Any, torch.nn.Module]:
        """``(tokenizer, text_encoder)`` as their files hold them, in ``dtype`` and on the CPU, anew with each call. Raises as ``load`` does."""
        from transformers import AutoTokenizer, T5EncoderModel

        weights = self.folder / "text_encoder"
        try:
            needed = sum(weights_memory(file, self.dtype) for file in weights.glob("*.safetensors"))
            require_memory(needed, self.device, f"The text encoder of {self.folder.name}")
            logger.info("Loading the text encoder of %s", self.folder)
            tokenizer = AutoTokenizer.from_pretrained(self.folder / "tokenizer")
            text_encoder, found = T5EncoderModel.from_pretrained(weights, dtype=self.dtype, output_loading_info=True)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"The text encoder of {self.folder} cannot be loaded ({first_line(error)}). Copy or download it again.") from error
        if missing := sorted(found["missing_keys"]):  # transformers itself would go on with random ones
            raise CheckpointError(f"{weights} lacks tensors that its config.json asks for: {some(missing)}. Copy or download it again.")
        return tokenizer, text_encoder

    def release(self) -> None:
        """Give the encoder's memory back, to the device and all that work on it; the next unknown prompt loads it again."""
        if self._loaded is not None:
            self._loaded = None
            release_memory()

    def to(self, device: torch.device | str) -> LazyTextEncoder:
        self.device = torch.device(device)
        if self._loaded is not None:
            self._loaded[1].to(self.device)
        return self

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """``prompts`` to embeddings ``[B, 77, D]``, float32 on ``device``."""
        found = _from_cache(prompts, self.cache)
        if all(text in found for text in prompts):
            return torch.stack([found[text].to(self.device, torch.float32) for text in prompts])
        return encode_prompts(prompts, *self.load(), cache=self.cache)


def _to_eight_bits(module: torch.nn.Module) -> None:
    """Put linear layers with 8-bit weights in the place of all of ``module``'s, one after the other: no second copy of the whole is held."""
    from torch.ao.nn.quantized.dynamic import Linear
    from torch.ao.quantization import default_dynamic_qconfig

    for name, child in module.named_children():
        if type(child) is torch.nn.Linear:
            child.qconfig = default_dynamic_qconfig
            setattr(module, name, Linear.from_float(child.float()))
        else:
            _to_eight_bits(child)
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.float()


def fingerprint(folder: str | Path) -> str:
    """What tells a model folder's text encoder from another one: a hash of its tokenizer and config, and of the size and both ends
    of every weight file (whole ones up to 2 MiB), as flan-t5-xxl has tens of gigabytes. Raises FileNotFoundError where there is none.
    """
    folder = Path(folder)
    digest = hashlib.sha256()
    for part in ("tokenizer", "text_encoder"):
        files = sorted(p for p in (folder / part).glob("*") if p.is_file())
        if not files:
            raise FileNotFoundError(f"{folder} has no {part}/ with files in it, which turns prompts into embeddings. A model folder holds transformer, vae, scheduler, tokenizer and text_encoder.")
        for path in files:
            size = path.stat().st_size
            digest.update(f"{part}/{path.name} {size}\n".encode())
            with open(path, "rb") as file:
                digest.update(file.read(_SAMPLE_BYTES))
                if size > _SAMPLE_BYTES:
                    file.seek(max(_SAMPLE_BYTES, size - _SAMPLE_BYTES))
                    digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
