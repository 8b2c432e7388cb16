"""Runs of fine-tuning on the fixture ``place`` that take seconds."""

import torch

from training.config import load_config


def config(place, out, *words):
    """Four steps on videos of 48x32, and what ``words`` say otherwise."""
    plain = [f"model={place / 'model'}", f"dataset={place / 'videos'}", f"output_dir={out}", f"data_dir={place / 'data'}", "sizes=[48x32]", "num_frames=[4]", "train_batch_size=2", "max_train_steps=4"]
    return load_config(None, [*plain, "checkpoint_every=2", "log_every=1", "mixed_precision=fp32", "num_threads=1", "validation_clips=2", "lr_warmup_steps=1", "learning_rate=1e-3", *words])


def trained(checkpoint):
    """What a checkpoint has trained, and its average."""
    state = torch.load(checkpoint / "training_state.pt", weights_only=True)
    return state["model"], state["ema"]["average"]
