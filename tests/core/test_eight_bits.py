"""Weights of 8 bits: how near the products are, that they serve as the full ones do, and that a GPU would take them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from tiny import save_tiny_model, tiny_pipeline, tiny_transformer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from core import GenerationRequest, RequestError, load_pipeline
from core.eight_bits import EightBitLinear, by_row, format_for, keep_in_eight_bits, multiply
from core.provenance import made_with

REQUEST = GenerationRequest("a small red ball", height=32, width=32, num_frames=3, num_inference_steps=3, guidance_scale=3.0, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def pipe(folder, tmp_path):
    loaded = load_pipeline(folder, device="cpu", dtype="fp32", data_dir=tmp_path)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """As a share of the other's length."""
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("format, within", [("int8", 0.01), ("fp8", 0.03)])
def test_rows_come_back_within_their_format(format, within):
    values = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 64)[:, None]
    values[0] = 0
    rows, scale = by_row(values, format)
    back = rows.float() * scale
    assert rows.element_size() == 1 and scale.shape == (64, 1) and torch.equal(back[0], values[0])
    assert all(apart(*pair) < within for pair in zip(back[1:], values[1:]))
    broken, scale = by_row(torch.tensor([[1.0, float("nan")]]), format)
    assert (broken.float() * scale).isnan().any(), "what is no number stays none, so that a sampler stops"


@pytest.fixture
def fp8_on_a_cpu(monkeypatch):
    """torch's product of fp8 on a CPU takes no scale for each row: they are multiplied in behind it."""
    product, one = torch._scaled_mm, torch.ones(())

    def scaled_mm(rows, weight, scale_a, scale_b, bias, out_dtype, use_fast_accum):
        out = product(rows, weight, scale_a=one, scale_b=one, out_dtype=torch.float32) * scale_a * scale_b
        return (out if bias is None else out + bias).to(out_dtype)

    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)
    monkeypatch.setattr("core.pipeline.format_for", lambda device, dtype: "fp8")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_multiplies_as_the_full_one(dtype, bias):
    torch.manual_seed(0)
    full, tokens = nn.Linear(96, 48, bias=bias, dtype=dtype), torch.randn(2, 5, 30, 96, dtype=dtype)
    layer = EightBitLinear(full, "int8")
    assert layer(tokens).shape == (2, 5, 30, 48) and layer(tokens).dtype == dtype
    assert 0 < apart(layer(tokens).float(), full(tokens).float()) < 0.015
    assert layer.weight.nbytes == 96 * 48 and layer.to(torch.bfloat16)(tokens.bfloat16()).isfinite().all(), "a change of dtype leaves the weights"


def test_a_request_with_8_bits_is_near_the_full_one_and_tells_of_it(pipe):
    full = pipe.generate(REQUEST).frames
    eight = pipe.generate(REQUEST.replace(weights="8bit")).frames
    assert 0 < abs(full - eight).mean() < 0.02
    layers = [layer for layer in pipe.transformer.modules() if isinstance(layer, EightBitLinear)]
    assert len(layers) == 2 * (10 + 6) and all(block.joined for block in pipe.transformer.transformer_blocks)
    assert made_with(pipe)["weights"] == "int8" and pipe.transformer.dtype == torch.float32
    assert (pipe.generate(REQUEST).frames == full).all() and "weights" not in made_with(pipe)


def test_fp8_is_near_too(pipe, fp8_on_a_cpu):
    full = pipe.generate(REQUEST).frames
    assert 0 < abs(pipe.generate(REQUEST.replace(weights="8bit")).frames - full).mean() < 0.03
    assert made_with(pipe)["weights"] == "fp8"


def test_joined_layers_multiply_as_they_do_alone():
    block, tokens = tiny_transformer().transformer_blocks[0], torch.randn(1, 3, 4, 32)
    keep_in_eight_bits(SimpleNamespace(transformer_blocks=[block], temporal_transformer_blocks=[]), "int8")
    with torch.no_grad():
        assert block.joined and len({layer.weight.untyped_storage().data_ptr() for layer in block._sharing()}) == 1
        for together, layer in zip(block._project(tokens), block._sharing(), strict=True):
            torch.testing.assert_close(together, layer(tokens))


def test_loras_work_on_8_bits(pipe, tmp_path):
    other = tiny_transformer()
    other.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    (tmp_path / "loras").mkdir()
    save_file(get_peft_model_state_dict(other), tmp_path / "loras" / "mine.safetensors")
    with_lora = REQUEST.replace(loras="mine")
    full, plain = pipe.generate(with_lora).frames, pipe.generate(REQUEST).frames
    assert abs(full - plain).max() > 0.05
    adapted = pipe.generate(with_lora.replace(weights="8bit")).frames
    assert 0 < abs(adapted - full).mean() < 0.02
    assert abs(pipe.generate(REQUEST.replace(weights="8bit")).frames - plain).mean() < 0.02
    assert (pipe.generate(with_lora).frames == full).all()


def test_what_is_saved_is_the_full_model(pipe, folder, tmp_path):
    before = pipe.transformer.state_dict()
    pipe.use_weights("8bit")
    pipe.save_pretrained(tmp_path / "saved")
    assert pipe.weights == "8bit"
    again = load_pipeline(tmp_path / "saved", device="cpu", dtype="fp32", data_dir=tmp_path).transformer.state_dict()
    assert set(again) == set(before) and all(torch.equal(again[name], before[name]) for name in before)


def test_memory_that_runs_out_on_the_way_leaves_no_mixture(pipe, monkeypatch):
    full, made = pipe.generate(REQUEST).frames, []

    def short_of_memory(linear, format):
        if len(made) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        made.append(EightBitLinear(linear, format))
        return made[-1]

    with monkeypatch.context() as patch:
        patch.setattr("core.eight_bits.EightBitLinear", short_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            pipe.use_weights("8bit")
    assert (pipe.generate(REQUEST).frames == full).all() and not any(isinstance(layer, EightBitLinear) for layer in pipe.transformer.modules())


@torch.no_grad()
def test_sums_that_fp16_could_not_hold_come_out():
    linear, tokens = nn.Linear(1152, 32), torch.randn(20, 1152)
    made = EightBitLinear(linear.half(), "int8")(tokens.half())
    assert apart(made.float(), nn.functional.linear(tokens, linear.weight.float(), linear.bias.float())) < 0.02


def test_what_cannot_be_is_refused(monkeypatch):
    with pytest.raises(RequestError, match="There are no weights '8bits'.*8bit"):
        REQUEST.replace(weights="8bits").resolved()
    pipe = tiny_pipeline()
    pipe.use_weights("8bit")
    with pytest.raises(RequestError, match="no folder"):
        pipe.use_weights("full")
    with pytest.raises(RequestError, match="mps"):
        format_for(torch.device("mps"), torch.float16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Old")
    for capability, dtype, format in (((9, 0), torch.bfloat16, "fp8"), ((8, 9), torch.bfloat16, "fp8"), ((9, 0), torch.float16, "int8"), ((8, 0), torch.bfloat16, "int8"), ((7, 0), torch.float16, None)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        if format is None:
            with pytest.raises(RequestError, match="NVIDIA Old cannot multiply in 8 bits.*7.0"):
                format_for(torch.device("cuda"), dtype)
        else:
            assert format_for(torch.device("cuda"), dtype) == format


@torch.no_grad()
@pytest.mark.parametrize("format", ["int8", "fp8"])
@pytest.mark.parametrize("tokens", [8, 240])
def test_a_gpu_would_take_the_operands(format, tokens):
    """Without a GPU: torch's own checks of shapes, strides and dtypes for CUDA, on tensors that have no numbers."""
    with FakeTensorMode():
        full = nn.Linear(96, 48, device="cuda", dtype=torch.bfloat16)
        layer = EightBitLinear(full, format)
        out = layer(torch.empty(1, tokens, 96, device="cuda", dtype=torch.bfloat16))
        with pytest.raises(RuntimeError):  # those checks are awake: the scale of an output too few
            multiply(torch.empty(1, 240, 96, device="cuda", dtype=torch.bfloat16), layer.weight, layer.scale[1:], layer.bias, format=format)
    assert out.shape == (1, tokens, 48) and out.dtype == torch.bfloat16 and out.device.type == "cuda"
