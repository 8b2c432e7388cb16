"""Tiny random parts of a pipeline: everything real, nothing trained. ``save_tiny_model(folder)`` makes a model folder of 2 MB."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

DATA = Path(__file__).parents[1] / "data"
GB = 10**9
TEXT_DIM = 32
LATENT_RGB = [[0.3, 0.1, 0.0], [0.0, 0.2, -0.1], [-0.2, 0.0, 0.3], [0.1, -0.1, 0.1], [0.05, 0.0, -0.05]]


def tiny_tokenizer():
    """Words to ids, ``</s>`` at the end, padded with ``<pad>``: what a T5 tokenizer does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = "<pad> </s> <unk> a the small big red green blue ball box star moves left right rises falls over meadow sea night desert".split()
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def tiny_text_encoder(seed: int = 0):
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(seed)
    config = T5Config(vocab_size=32, d_model=TEXT_DIM, d_kv=8, d_ff=48, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False)
    return T5EncoderModel(config).eval().requires_grad_(False)


def tiny_vae(seed: int = 0):
    from diffusers import AutoencoderKLTemporalDecoder

    torch.manual_seed(seed)
    vae = AutoencoderKLTemporalDecoder(down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=(32,) * 4, layers_per_block=1, latent_channels=4, scaling_factor=0.18215, force_upcast=False)
    return vae.eval().requires_grad_(False)


def tiny_transformer(seed: int = 0, **config):
    """Random weights, the zero-initialised output included, so that the prompt, the time and the fps all change the result."""
    from core import MiraTransformer3DModel

    torch.manual_seed(seed)
    shape = dict(num_attention_heads=2, attention_head_dim=16, num_layers=2, caption_channels=TEXT_DIM, temporal_length=8)
    transformer = MiraTransformer3DModel(**(shape | config))
    generator = torch.Generator().manual_seed(seed)
    for parameter in transformer.parameters():
        if parameter.ndim > 1 or not parameter.any():
            parameter.data.normal_(0, 0.15 if parameter.ndim > 1 else 0.02, generator=generator)
    return transformer.eval().requires_grad_(False)


def tiny_pipeline(seed: int = 0, prediction_type: str = "epsilon", **transformer_config):
    """A whole MiraPipeline on the CPU in fp32."""
    from core import MiraPipeline, MiraScheduler

    pipe = MiraPipeline(
        transformer=tiny_transformer(seed, **transformer_config),
        vae=tiny_vae(seed),
        scheduler=MiraScheduler(prediction_type=prediction_type),
        text_encoder=tiny_text_encoder(seed),
        tokenizer=tiny_tokenizer(),
        latent_rgb=LATENT_RGB,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_tiny_model(folder: str | Path, seed: int = 0) -> Path:
    """A model folder that ``load_pipeline`` and ``MiraPipeline.from_pretrained`` take."""
    tiny_pipeline(seed).save_pretrained(folder)
    return Path(folder)


def tiny_clip(folder: Path) -> tuple[Path, str]:
    """A CLIP of random weights in ``folder``: its file, and what open_clip calls such a model, in any process."""
    import json

    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    shape = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}, "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": shape, "preprocess_cfg": {}}))
    (folder / "tiny-clip.json").write_text(json.dumps(shape))
    open_clip.add_model_config(folder / "tiny-clip.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny-clip").state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder / "open_clip_pytorch_model.bin", f"local-dir:{folder}"


def reference(name: str) -> tuple[dict, dict, dict]:
    """Weights, metadata and figures of a file of tests/data."""
    from safetensors import safe_open

    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}
        weights = {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}
        return weights, file.metadata(), tensors


def original_checkpoint(folder: Path) -> tuple[Path, dict]:
    """A Mira YAML, written into ``folder``, and the flat tensors of a checkpoint that fits it."""
    from omegaconf import OmegaConf

    network, metadata, _ = reference("transformer_v0")
    vae, vae_metadata, _ = reference("vae")
    params = {
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "timesteps": 1000,
        "use_scale": True,
        "scale_b": 0.7,
        "scale_factor": 0.18215,
        "denoiser_config": {"target": "mira.modules.networks.miradit.MiraDiT", "params": json.loads(metadata["config"])},
        "first_stage_config": {"target": "mira.models.autoencoder_temporal.AutoencodingEngine", "params": json.loads(vae_metadata["config"])},
    }
    OmegaConf.save({"model": {"params": params}}, folder / "config.yaml")
    flat = {f"model.diffusion_model.{k}": v for k, v in network.items()} | {f"first_stage_model.{k}": v for k, v in vae.items()}
    flat |= {f"cond_stage_model.transformer.{k}": v for k, v in tiny_text_encoder().state_dict().items()}
    flat["scale_arr"] = torch.ones(1000)
    return folder / "config.yaml", flat


def layout(kind: str, flat: dict) -> dict:
    """The tensors ``flat`` of an original in one of Mira's three layouts."""
    if kind == "state_dict":
        return {"state_dict": flat, "epoch": 3}
    if kind == "module":
        return {"module": {f"_forward_module.{k}": v for k, v in flat.items()}}
    prefix = "model.diffusion_model."
    return {"ema": {k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)}}


def saved(folder: Path, content: object, name: str = "mine.pt") -> Path:
    """``content`` as a file of torch's."""
    torch.save(content, folder / name)
    return folder / name


def disk_with(free: int):
    """What ``shutil.disk_usage`` says of a disk with so many bytes free."""
    return lambda _: shutil._ntuple_diskusage(100 * GB, 100 * GB - free, free)
