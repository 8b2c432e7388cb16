"""The transformer against figures of the original code, and what must hold for any weights."""

import gzip
import inspect
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from core import MiraTransformer3DModel
from core.attention import attend, attend_both
from core.step_cache import StepCache
from plain import plain_forward

DATA = Path(__file__).parents[1] / "data"
SMALL = dict(num_attention_heads=2, attention_head_dim=16, num_layers=2, caption_channels=12, temporal_length=4)


def reference(name):
    """The original's model of that name with its weights, and its recorded inputs and outputs."""
    with safe_open(DATA / f"transformer_{name}.safetensors", "pt") as file:
        known = inspect.signature(MiraTransformer3DModel.__init__).parameters
        config = {k: v for k, v in json.loads(file.metadata()["config"]).items() if k in known}
        model = MiraTransformer3DModel(**{"text_spatial_cond": False, **config}).eval()
        model.load_state_dict({k.removeprefix("weights."): file.get_tensor(k).float() for k in file.keys() if k.startswith("weights.")})
        return model, {k.removeprefix("forward."): file.get_tensor(k) for k in file.keys() if k.startswith("forward.")}


def small(seed=0, **changes):
    """A random model whose every weight matters."""
    torch.manual_seed(seed)
    model = MiraTransformer3DModel(**{**SMALL, **changes}).eval()
    torch.nn.init.normal_(model.proj_out.weight, std=0.2)
    return model


def inputs(B=2, T=3, H=4, W=6, C=4, seed=1):
    g = torch.Generator().manual_seed(seed)
    return dict(
        hidden_states=torch.randn(B, C, T, H, W, generator=g),
        timestep=torch.randint(0, 1000, (B,), generator=g),
        encoder_hidden_states=torch.randn(B, 5, 12, generator=g),
        fps=torch.full((B,), 8),
    )


@pytest.mark.parametrize("name", ["v0", "v1", "window"])
@torch.no_grad()
def test_forward_equals_the_original(name):
    model, figures = reference(name)
    call = [figures[k] for k in ("sample", "timestep", "encoder_hidden_states", "fps")]
    for output, temporal in (("output", True), ("output_no_temporal", False)):
        difference = (model(*call, enable_temporal_attention=temporal).sample - figures[output]).abs().max()
        assert difference <= 1e-4 * figures[output].abs().max()


@pytest.mark.parametrize("name, config", [("128", {}), ("768v1_10s", dict(out_channels=8, text_spatial_cond=False, temporal_length=60))])
def test_every_tensor_of_the_released_models_has_its_place(name, config):
    with torch.device("meta"):
        ours = {k: list(v.shape) for k, v in MiraTransformer3DModel(**config).state_dict().items()}
    with gzip.open(DATA / "state_dict_keys.json.gz", "rt") as file:
        theirs = {k.removeprefix("model.diffusion_model."): v for k, v in json.load(file)[name].items()}
    assert ours == theirs


@torch.no_grad()
def test_a_batch_of_two_equals_two_of_one():
    model, both = small(), inputs()
    together = model(**both).sample
    alone = [model(**{k: v[i : i + 1] for k, v in both.items()}).sample for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("text_spatial_cond", [True, False])
def test_the_original_order_of_work_and_the_text_projected_ahead_give_the_same(text_spatial_cond):
    """The plain forward of the benchmark projects the text for every frame, one prompt at a time."""
    model, both = small(text_spatial_cond=text_spatial_cond), inputs()
    together = model(**both).sample
    plain = [plain_forward(model, both["hidden_states"][[i]], both["timestep"][[i]], both["encoder_hidden_states"][[i]], both["fps"][i]) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(plain), rtol=1e-4, atol=1e-5)
    text = model.project_text(both.pop("encoder_hidden_states"))
    for _ in range(2):
        torch.testing.assert_close(model(**both, encoder_hidden_states=text).sample, together, rtol=0, atol=0)
    with pytest.raises(ValueError, match="of 2 prompts in 1 layers"):
        model(**both, encoder_hidden_states=text[:1])


@torch.no_grad()
@pytest.mark.parametrize("window_attn", [None, "frame"])
def test_frames_are_known_by_their_indices_not_by_their_order(window_attn):
    model, whole = small(window_attn=window_attn), inputs(T=5)
    expected, order = model(**whole).sample, torch.tensor([3, 0, 4, 2, 1])
    shuffled = {**whole, "hidden_states": whole["hidden_states"][:, :, order]}
    torch.testing.assert_close(model(**shuffled, frame_indices=order).sample, expected[:, :, order], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(**shuffled).sample, expected[:, :, order], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("window_attn", [None, (2, 3), "frame"])
def test_frames_apart_are_each_frame_by_itself(window_attn):
    model, whole = small(window_attn=window_attn), inputs(T=3, H=8, W=12)
    alone = [model(**{**whole, "hidden_states": whole["hidden_states"][:, :, [t]]}, frame_indices=torch.tensor([t])).sample for t in range(3)]
    apart = model(**whole, frames_apart=True).sample
    torch.testing.assert_close(apart, torch.cat(alone, 2), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(apart, model(**whole).sample, atol=1e-3)


@torch.no_grad()
def test_more_frames_than_trained_and_any_even_size():
    model = small()
    for T, H, W in ((1, 2, 2), (9, 6, 10), (40, 4, 2)):
        assert model(**inputs(1, T, H, W)).sample.shape == (1, 4, T, H, W)


@torch.no_grad()
def test_one_window_over_the_grid_is_the_whole_frame():
    explicit, whole = small(window_attn=(2, 3)), small(window_attn="frame")
    torch.testing.assert_close(explicit(**inputs()).sample, whole(**inputs()).sample)


@torch.no_grad()
def test_windows_keep_far_patches_apart():
    """A change in the left window reaches the right one only through the spatial blocks, so never without them."""
    model = small(window_attn=(2, 3), num_layers=1)
    tokens = torch.randn(2, 3, 12, 32)  # a grid of 2 x 6 in 3 frames
    windows = model._along_time(tokens, 2, 6, (2, 3))
    assert windows.shape == (2, 1, 2, 3, 2, 3, 32)
    torch.testing.assert_close(model._by_frame(windows), tokens)
    torch.testing.assert_close(windows[0, 0, 0], tokens.view(2, 3, 2, 6, 32)[0, :, :, :3])


@torch.no_grad()
def test_v1_keeps_the_first_half_of_what_it_predicts():
    model = small(out_channels=8, text_spatial_cond=False)
    before = model(**inputs()).sample
    assert before.shape[1] == 4
    weight = model.proj_out.weight.view(4, 8, -1)  # patches, channels
    weight[:, 4:] += 1
    torch.testing.assert_close(model(**inputs()).sample, before)


def test_self_attention_starts_near_but_not_at_each_token_alone(monkeypatch):
    seen = []

    def spy(query, key, value, heads):
        if query.shape == key.shape:
            q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key))
            seen.append((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1))
        return attend(query, key, value, heads)

    monkeypatch.setattr("core.transformer.attend", spy)
    torch.manual_seed(0)
    model = MiraTransformer3DModel(num_attention_heads=3, attention_head_dim=64, num_layers=2, caption_channels=12, window_attn="frame")
    model(**inputs(T=1, H=10, W=16))
    for weights in seen:
        own = weights.diagonal(dim1=-2, dim2=-1).mean()
        nearer, farther = (weights.diagonal(offset, -2, -1).mean() for offset in (1, 4))
        assert 2 / 40 < own < 0.8 and nearer > farther
    assert len(seen) == 4


@pytest.mark.parametrize("own_tokens", [6, 20])
def test_attention_to_shared_and_own_keys_is_that_to_both_side_by_side(monkeypatch, own_tokens):
    """Of 3 groups a clip and 2 clips, whichever there is more of; where there is more to share, without putting them side by side."""
    torch.manual_seed(0)
    query, own, shared = 3 * torch.randn(6, 5, 16), 3 * torch.randn(2, 6, own_tokens, 16), 3 * torch.randn(2, 2, 9, 16)
    whole = (torch.cat([s.repeat_interleave(3, 0), o], 1) for s, o in zip(shared, own))
    expected = attend(query, *whole, 2)
    seen = []
    monkeypatch.setattr("core.attention.attend", lambda *args: seen.append(args) or attend(*args))
    with torch.no_grad():
        torch.testing.assert_close(attend_both(query, tuple(shared), tuple(own), 2), expected, rtol=1e-4, atol=1e-6)
    assert len(seen) == (own_tokens > 9)
    torch.testing.assert_close(attend_both(query, tuple(shared), tuple(own), 2), expected)
    assert len(seen) == 1 + (own_tokens > 9), "what is trained through asks both at once"


def test_gradient_checkpointing_gives_the_same_gradients():
    plain, saving = small(), small()
    saving.enable_gradient_checkpointing()
    for model in (plain, saving):
        model.train()(**inputs()).sample.square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters()):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_lora_adapters_change_the_output_and_round_trip(tmp_path):
    from peft import LoraConfig

    model = small()
    before = model(**inputs()).sample.detach()
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trainable and all("lora" in n for n in trainable)
    with_lora = model(**inputs()).sample.detach()
    assert not torch.allclose(before, with_lora)
    model.save_lora_adapter(tmp_path)
    other = small()
    other.load_lora_adapter(tmp_path, prefix=None, weight_name="pytorch_lora_weights.safetensors")
    torch.testing.assert_close(other(**inputs()).sample.detach(), with_lora)


def test_save_and_load(tmp_path):
    model = small(window_attn="frame")
    model.save_pretrained(tmp_path)
    again = MiraTransformer3DModel.from_pretrained(tmp_path)
    assert dict(again.config)["window_attn"] == "frame"
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs()).sample, model(**inputs()).sample)


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(hidden_states=torch.zeros(2, 3, 3, 4, 6)), ["4", "[2, 3, 3, 4, 6]"]),
        (dict(hidden_states=torch.zeros(2, 4, 3, 5, 6)), ["5 x 6", "multiples of 2"]),
        (dict(hidden_states=torch.zeros(2, 4, 0, 4, 6)), ["0 frames"]),
        (dict(encoder_hidden_states=torch.zeros(2, 5, 13)), ["12", "[2, 5, 13]"]),
        (dict(fps=None), ["frame rate"]),
    ],
)
def test_a_shape_that_it_cannot_take_is_refused_with_the_numbers(changes, words):
    with pytest.raises(ValueError) as error:
        small()(**{**inputs(), **changes})
    assert all(word in str(error.value) for word in words)


def test_windows_that_do_not_divide_the_grid_are_refused():
    with pytest.raises(ValueError, match="2 x 3 patches does not divide into windows of 2 x 2"):
        small(window_attn=(2, 2))(**inputs())


def test_a_trained_model_takes_another_window():
    """What is made for it is as in a new model; all else, and a model whose window is that one already, stays as it was."""
    model = small(window_attn=None)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.look_over_time(None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.look_over_time("frame")
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith("temporal_transformer_blocks.") and ".attn1." in name for name in changed)
    attention = model.temporal_transformer_blocks[0].attn1
    assert torch.equal(attention.to_q.weight, attention.to_k.weight) and model.config.window_attn == "frame"
    with pytest.raises(ValueError, match="window_attn is 'all'"):
        model.look_over_time("all")


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, dict(window_attn=(2, 3)), dict(window_attn="frame"), dict(text_spatial_cond=False)])
def test_a_few_groups_at_a_time_give_the_same(changes, monkeypatch):
    """As a CPU does with many tokens; clips at different noise steps, and windows in more rows and columns than go together."""
    model, both = small(**changes), inputs(T=5, H=8, W=12)
    whole = model(**both).sample
    seen = []
    block = model.transformer_blocks[0].forward
    monkeypatch.setattr(model.transformer_blocks[0], "forward", lambda tokens, *rest: seen.append(tokens.shape[:3]) or block(tokens, *rest))
    monkeypatch.setattr("core.transformer.TOKENS_AT_ONCE", 50)
    torch.testing.assert_close(model(**both).sample, whole, rtol=1e-4, atol=1e-5)
    assert seen == 2 * [(1, 2, 24), (1, 2, 24), (1, 1, 24)]  # two of 24 tokens at once, as even as can be


@torch.no_grad()
def test_any_accelerator_takes_all_groups_at_once(monkeypatch):
    """The meta device stands for one that is neither a CPU nor CUDA."""
    model, seen = small().to("meta"), []
    monkeypatch.setattr("core.transformer.TOKENS_AT_ONCE", 50)
    groups, text = torch.empty(1, 5, 1, 24, model.dim, device="meta"), torch.empty(1, 3, model.dim, device="meta")
    block = lambda tokens, *rest: seen.append(tokens.shape) or tokens  # noqa: E731
    model._run(block, groups, text, text)
    assert seen == [(1, 5, 24, model.dim)]


@torch.no_grad()
def test_the_modulation_of_all_steps_ahead_is_that_of_each_step():
    model, both = small(), inputs()
    steps = model.modulate_steps(torch.tensor([700, 20]), 8)
    for number, timestep in enumerate((700, 20)):
        ahead = model(both["hidden_states"], steps(number), both["encoder_hidden_states"]).sample
        torch.testing.assert_close(ahead, model(**both | {"timestep": timestep}).sample, rtol=1e-4, atol=1e-5)


def test_projections_side_by_side_stay_the_parameters_they_were(tmp_path):
    """One product for all that share an input: what changes a weight still does, files keep their names, and adapters are heard."""
    from peft import LoraConfig

    model, both = small(), inputs()
    with torch.no_grad():
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        first = model(**both).sample
        block = model.transformer_blocks[0]
        assert block.joined and len({p.weight.untyped_storage().data_ptr() for p in block._sharing()}) == 1 and len(block._sharing()) == 5
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        model.save_pretrained(tmp_path)
        torch.testing.assert_close(MiraTransformer3DModel.from_pretrained(tmp_path)(**both).sample, first)
        block.attn2.to_v.weight.mul_(2)
        changed = model(**both).sample
        assert not torch.allclose(changed, first)
    model(**both).sample.sum().backward()
    assert all(p.weight.grad is not None and p.weight.grad.shape == p.weight.shape for p in block._sharing())
    with torch.no_grad():
        text = model.project_text(both["encoder_hidden_states"])
        model.add_adapter(LoraConfig(r=2, target_modules=["to_v"], init_lora_weights=False))
        assert not torch.allclose(model(**both | {"encoder_hidden_states": text}).sample, changed)


@torch.no_grad()
def test_a_step_cache_spares_layers_and_at_zero_none():
    model, both = small(num_layers=3), inputs()
    steps = [model(**both | {"timestep": t}).sample for t in (500, 499)]
    for threshold, spared in ((0.0, 0), (10.0, 1)):
        cache = StepCache(threshold)
        cached = [model(**both | {"timestep": t}, cache=cache).sample for t in (500, 499)]
        assert cache.spared == spared and torch.equal(cached[0], steps[0]) and torch.equal(cached[1], steps[1]) == (not spared)
        assert (cached[1] - steps[1]).abs().mean() < 0.1 * (steps[1] - steps[1].mean()).abs().mean()
    alone = {name: value[:1] for name, value in both.items()}
    assert torch.equal(model(**alone, cache=cache).sample, model(**alone).sample) and cache.spared == 1


@torch.no_grad()
def test_blocks_compile_whole_and_give_the_same():
    """Traced as torch.compile traces them, once for each kind of block; what is generated of the trace is torch's own."""
    model, both = small(), inputs()
    plain = model(**both).sample
    model.compile_repeated_blocks(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(model(**both).sample, plain, rtol=1e-4, atol=1e-5)
    assert set(model.state_dict()) == set(small().state_dict())
