"""Linear layers in one kernel with their bias and GELU: as near to the truth as torch's own, and only where it may be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig
from tiny import tiny_transformer

from core import products

needs_bf16 = pytest.mark.skipif(not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()), reason="oneDNN does not multiply in bf16 on this CPU")


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one.float() - other).norm() / other.norm()).item()


@needs_bf16
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_as_near_to_fp32_as_torchs_own(gelu, bias):
    torch.manual_seed(0)
    tokens, weight, offset = torch.randn(3, 50, 96).bfloat16(), (torch.randn(160, 96) / 96**0.5).bfloat16(), torch.randn(160).bfloat16() if bias else None
    after = (lambda x: F.gelu(x, approximate="tanh")) if gelu else (lambda x: x)
    exact = after(F.linear(tokens.float(), weight.float(), None if offset is None else offset.float()))
    with torch.inference_mode():
        fused, own = products.linear(tokens, weight, offset, gelu), after(F.linear(tokens, weight, offset))
    assert fused.shape == own.shape and fused.dtype == own.dtype
    assert apart(fused, exact) <= 1.05 * apart(own, exact) < 0.01


def test_in_fp32_it_does_the_gelu_alone():
    torch.manual_seed(0)
    tokens, weight, offset = torch.randn(3, 50, 96), torch.randn(160, 96) / 96**0.5, torch.randn(160)
    with torch.inference_mode():
        assert products.pays(tokens, weight, gelu=True) and not products.pays(tokens, weight)
        fused = products.linear(tokens, weight, offset, gelu=True)
    exact = F.gelu(F.linear(tokens.double(), weight.double(), offset.double()), approximate="tanh")
    assert fused.dtype == torch.float32 and apart(fused, exact.float()) < 3e-7


@needs_bf16
def test_what_it_is_not_for(monkeypatch):
    tokens, weight = torch.randn(products.FEWEST, 32).bfloat16(), torch.randn(48, 32).bfloat16()
    assert not products.pays(tokens, weight), "it has no gradient"
    with torch.no_grad():
        assert products.pays(tokens, weight) and products.pays(tokens[: products.FEWEST_WITH_GELU], weight, gelu=True)
        assert not products.pays(tokens.float(), weight) and not products.pays(tokens.half(), weight.half(), gelu=True)
        assert not products.pays(tokens[1:], weight) and not products.pays(tokens[: products.FEWEST_WITH_GELU - 1], weight, gelu=True), "too few tokens"
        assert not products.pays(tokens.to("meta"), weight.to("meta"))
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not products.pays(tokens, weight), "a compiler does it itself"


@needs_bf16
def test_a_transformer_uses_it_and_its_adapted_layers_do_not(monkeypatch):
    """All products of a block that has as many tokens: the joint projection, attention's output, the query and output of cross-attention, and both of the feed-forward; with a LoRA, none passes it by."""
    asked = []
    whole = products.linear
    monkeypatch.setattr(products, "linear", lambda *inputs, **more: asked.append(more or inputs[3:]) or whole(*inputs, **more))
    model = tiny_transformer().bfloat16().eval()
    blocks = [*model.transformer_blocks, *model.temporal_transformer_blocks]
    for block in blocks:
        block.join_projections()
    latents, text = torch.randn(2, model.config.in_channels, 12, 16, 16).bfloat16(), torch.randn(2, 5, model.config.caption_channels).bfloat16()
    with torch.no_grad():
        monkeypatch.setattr(products, "FEWEST", 1)
        fused = model(latents, 500, text, 6).sample
        assert len(asked) == 6 * len(model.transformer_blocks) + 4 * len(model.temporal_transformer_blocks) and sum(more == (True,) for more in asked) == len(blocks)
        plain = without(monkeypatch, model, latents, text)
        assert apart(fused, plain) < 0.02
        model.add_adapter(LoraConfig(r=4, target_modules=["to_q", "net.0.proj", "to_out.0"], init_lora_weights=False))
        adapted = model(latents, 500, text, 6).sample
        assert apart(adapted, without(monkeypatch, model, latents, text)) < 0.02 < apart(adapted, fused.float())


def without(monkeypatch: pytest.MonkeyPatch, model: torch.nn.Module, latents: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """What the model makes of them in torch's own kernels."""
    with monkeypatch.context() as patch:
        patch.setattr(products, "pays", lambda *_, **__: False)
        return model(latents, 500, text, 6).sample.float()
