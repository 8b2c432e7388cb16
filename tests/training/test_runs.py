"""Run folders when something goes wrong: starts over one another, full disks, gradients that are no numbers, early pauses, odd names."""

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from core.device_lock import DeviceTurn, lock_path
from core.files import WriteError
from core.provenance import model_hash, own_commit
from studio_app import wait_for
from training.__main__ import main
from training.config import ConfigError, load_config, save_config
from training.preflight import preflight
from training.runs import Runs, Status, environment, latest_checkpoint, read_run
from training.start import held, train
from training.trainer import Diverged, NonFiniteLoss, Trainer


class Line:
    """A task as small as can be: two weights and a loss."""

    casts_weights = True

    def __init__(self, frozen: bool = False):
        self.model = self.network = torch.nn.Linear(1, 1)
        self.model.bias.requires_grad_(not frozen)

    def batch(self, index):
        return {}

    def loss(self, batch, index):
        return self.network(torch.ones(1, 1)).square().mean(), {}

    def save(self, folder, weights, step):
        (folder / "weights.txt").write_text(f"{step}: {weights}")


def config(folder, *words):
    return load_config(None, ["target=vae", f"output_dir={folder}", f"data_dir={folder}/data", "checkpoint_every=2", "log_every=1", "max_train_steps=4", "report_to=[]", "mixed_precision=fp32", *words])


def run(folder, *words, task=None):
    return Trainer(config(folder, *words), task or Line()).run()


def steps(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").iterdir())


@pytest.fixture
def line(monkeypatch):
    """``train`` and the command train a Line."""
    monkeypatch.setattr("training.targets.build_task", lambda *_: Line())
    return monkeypatch


def test_a_start_from_an_earlier_step_writes_its_checkpoints_in_place_of_those_of_the_start_before(tmp_path):
    run(tmp_path, "max_train_steps=8", "keep_last=9")
    for step in (2, 8):
        (tmp_path / "samples" / f"step-{step}").mkdir(parents=True)
    before = (tmp_path / "checkpoints" / "step-4" / "weights.txt").read_text()
    run(tmp_path, "max_train_steps=3", f"resume={tmp_path}/checkpoints/step-2", "checkpoint_every=9", "keep_last=1")
    assert steps(tmp_path) == [3] and list(read_run(tmp_path).samples()) == [2], "neither those beyond its step nor those that are old"
    run(tmp_path, "max_train_steps=4", "resume=none", "seed=1", "keep_last=2")
    assert steps(tmp_path) == [2, 4] and (tmp_path / "checkpoints" / "step-4" / "weights.txt").read_text() != before
    written = (tmp_path / "checkpoints" / "step-4" / ".complete").stat().st_mtime_ns
    run(tmp_path, "max_train_steps=4")
    assert (tmp_path / "checkpoints" / "step-4" / ".complete").stat().st_mtime_ns == written, "a run that is at its end already writes nothing"


def test_a_start_that_writes_no_checkpoint_takes_none_away(tmp_path):
    run(tmp_path, "max_train_steps=4")
    task = Line()
    task.loss = lambda batch, index: (task.network(torch.ones(1, 1)).mean() * float("nan"), {})
    with pytest.raises(NonFiniteLoss):
        run(tmp_path, "resume=none", task=task)
    assert steps(tmp_path) == [2, 4]


def full(folder, *_):
    """A checkpoint's weights on a disk that has no room for all of them."""
    (folder / "half").write_bytes(bytes(1000))
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def torch_full(*_):
    raise RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 704 vs 598")


@pytest.mark.parametrize("place, failure, words", [("test_runs.Line.save", lambda task, *rest: full(*rest), "The disk is full: .*step-4"), ("torch.save", torch_full, "step-4 could not be written: .*unexpected pos")])
def test_a_full_disk_stops_the_run_with_its_last_checkpoint_whole(line, tmp_path, capsys, place, failure, words):
    train(config(tmp_path, "max_train_steps=2"))
    name, _, method = place.rpartition(".")
    line.setattr(Line if name.endswith("Line") else torch, method, failure)
    with pytest.raises(WriteError, match=words):
        train(config(tmp_path))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-2"] == [latest_checkpoint(tmp_path).name]
    assert torch.load(latest_checkpoint(tmp_path) / "training_state.pt", weights_only=True)["step"] == 2
    told = read_run(tmp_path)
    assert told.state == "failed" and "could not be written" in told.message
    save_config(config(tmp_path), tmp_path / "config.yaml")
    assert main(["--config", str(tmp_path / "config.yaml"), "--device", "cpu"]) == 2 and "could not be written" in capsys.readouterr().err


def test_the_best_checkpoint_the_newest_and_every_so_manyth_are_kept(tmp_path):
    task, losses = Line(), iter([5.0, 2.0, 4.0, 1.0, 3.0, 6.0, 7.0])
    task.validate = lambda weights: next(losses)
    run(tmp_path, "max_train_steps=3", "checkpoint_every=1", "keep_last=1", task=task)
    assert steps(tmp_path) == [2, 3], "the best, and the newest"
    run(tmp_path, "max_train_steps=7", "checkpoint_every=1", "keep_last=1", "keep_every=3", task=task)
    assert steps(tmp_path) == [3, 4, 6, 7], "a better one came at step 4"


def test_a_full_disk_at_the_start_is_said_in_words(line, tmp_path, capsys):
    save_config(config(tmp_path), tmp_path / "config.yaml")
    write = Path.write_text

    def full_for_facts(path, *args, **options):
        return full(path.parent) if "environment" in path.name else write(path, *args, **options)

    line.setattr(Path, "write_text", full_for_facts)
    assert main(["--config", str(tmp_path / "config.yaml"), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert f"The disk is full: {tmp_path}/environment.json could not be written" in said and "Traceback" not in said
    assert read_run(tmp_path).state == "failed" and "The disk is full" in read_run(tmp_path).message and not list(tmp_path.glob(".environment*"))


def test_figures_that_cannot_be_written_for_tensorboard_are_told_in_words(tmp_path):
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(WriteError, match="tensorboard could not be written: a file stands where a folder should be"):
        run(tmp_path, "report_to=[tensorboard]")


def test_a_device_that_is_not_here_is_refused_before_anything_is_prepared(line, tmp_path, capsys):
    line.setattr("training.targets.build_task", lambda *_: pytest.fail("the clips are prepared first"))
    save_config(config(tmp_path), tmp_path / "config.yaml")
    for device, words in (("cuda:99", "There is no cuda:99 here"), ("cdua", "There is no device 'cdua'. Did you mean 'cuda'?")):
        assert main(["--config", str(tmp_path / "config.yaml"), "--device", device]) == 2 and words in capsys.readouterr().err
        assert read_run(tmp_path).state == "failed" and words in read_run(tmp_path).message


def test_the_first_error_is_told_when_not_even_the_status_can_be_written(line, tmp_path):
    line.setattr(Line, "save", lambda task, *rest: (line.setattr(Status, "write", lambda status, folder: (_ for _ in ()).throw(WriteError(folder, OSError(errno.ENOSPC, "full")))), full(*rest)))
    with pytest.raises(WriteError, match="step-2"):
        train(config(tmp_path))


def test_what_a_killed_process_was_writing_is_removed_by_the_next_start(tmp_path):
    for left in (".step-2.tmp", ".step-9.0a1b2c3d.tmp"):
        (tmp_path / "checkpoints" / left).mkdir(parents=True)
    run(tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-2", "step-4"]


def test_settings_stay_whole_when_the_disk_is_full(tmp_path, monkeypatch):
    save_config(config(tmp_path), file := tmp_path / "config.yaml")
    before = file.read_text()

    def half(path, text, **_):
        path.write_bytes(text[:100].encode())
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(WriteError, match="The disk is full"):
        save_config(config(tmp_path, "seed=1"), file)
    assert file.read_text() == before and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("place", ["training.runs.save_config", "training.runs.subprocess.Popen"])
def test_a_run_that_cannot_be_launched_leaves_its_name_free(tmp_path, monkeypatch, place):
    def fail(*_, **__):
        raise WriteError(tmp_path, OSError(errno.ENOSPC, "full")) if place.endswith("config") else OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(place, fail)
    with pytest.raises(WriteError):
        Runs(tmp_path / "runs").launch("one", config(tmp_path))
    assert not (tmp_path / "runs" / "one").exists()


def test_resume_goes_on_from_the_last_checkpoint_whatever_the_first_start_said(tmp_path, monkeypatch):
    commands, popen = [], subprocess.Popen
    monkeypatch.setattr("training.runs.subprocess.Popen", lambda command, **rest: (commands.append(command), popen([sys.executable, "-c", ""], **rest))[1])
    folder = tmp_path / "one"
    folder.mkdir()
    save_config(config(folder, "resume=none"), folder / "config.yaml")
    runs = Runs(tmp_path)
    runs.resume("one")
    assert "resume=auto" not in commands[0], "before there is one it begins as it was told to"
    run(folder, "resume=none")
    Status("paused").write(folder)
    runs.resume("one")
    assert load_config(commands[1][4], commands[1][7:]).resume == "auto"


@pytest.mark.parametrize("precision, step", [("fp32", 0), ("fp16", 30)])
def test_a_gradient_that_is_no_number_stops_the_run_before_it_spoils_the_weights(tmp_path, precision, step):
    task = Line()
    task.loss = lambda batch, index: (task.network(torch.zeros(1, 1)).sub(task.model.bias).abs().sqrt().sum(), {})
    before = task.model.weight.item()
    with pytest.raises(NonFiniteLoss, match=f"The norm of the gradient is nan at step {step}. Resume with a lower learning_rate"):
        run(tmp_path, f"mixed_precision={precision}", "max_train_steps=99", "checkpoint_every=99", task=task)
    assert task.model.weight.item() == before and latest_checkpoint(tmp_path) is None


def test_a_constant_loss_does_not_diverge_however_many_batches_make_a_step(tmp_path):
    task = Line()
    task.loss = lambda batch, index: (task.network(torch.ones(1, 1)).mean() * 0 + 1, {})
    run(tmp_path, "gradient_accumulation_steps=160", "max_train_steps=2", task=task)
    assert [row["loss"] for row in read_run(tmp_path).metrics()] == [1, 1]
    seen = []

    def breaks(batch, index):
        seen.append(index)
        return task.network(torch.ones(1, 1)).mean() * (float("nan") if index == 323 else 1), {}

    task.loss = breaks
    with pytest.raises(NonFiniteLoss, match="at step 2"):
        run(tmp_path, "gradient_accumulation_steps=160", "max_train_steps=9", task=task)
    assert seen == [320, 321, 322, 323], "the rest of a step that is of no use is not computed"


def test_a_loss_that_explodes_while_the_rate_still_rises_is_noticed(tmp_path):
    task = Line()
    task.loss = lambda batch, index: (task.network(torch.ones(1, 1)).mean() * 0 + (0.15 if index < 20 else 1.1), {})  # as of a model that was good, and then says nothing
    with pytest.raises(Diverged, match="up to step 51; it has been 0.15"):
        run(tmp_path, "max_train_steps=99", "checkpoint_every=99", task=task)


def test_a_loss_that_explodes_is_noticed_across_a_pause(tmp_path):
    task = Line()
    task.loss = lambda batch, index: (task.network(torch.ones(1, 1)).mean() * 0 + (0.15 if index < 60 else 1.1), {})
    run(tmp_path, "max_train_steps=60", "checkpoint_every=99", task=task)
    with pytest.raises(Diverged, match="up to step 9[0-9]; it has been 0.15"):
        run(tmp_path, "max_train_steps=199", "checkpoint_every=199", task=task)


def test_runs_that_name_no_gpu_get_the_freest_each_and_wait_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("training.start.memory_free", {"cuda:0": 8, "cuda:1": 30, "cuda:2": 20}.get)
    gpu, waited = torch.device("cuda"), []

    def third() -> None:
        with held(tmp_path, gpu) as device:
            waited.append(str(device))

    with held(tmp_path, torch.device("cuda:2")), held(tmp_path, gpu) as first, held(tmp_path, gpu) as second:
        assert (str(first), str(second)) == ("cuda:1", "cuda:0"), "another run has cuda:2"
        waiting = threading.Thread(target=third)
        waiting.start()
        wait_for(DeviceTurn(lock_path(tmp_path, "cuda:1")).wanted, "its asking")
        assert not waited
    waiting.join()
    assert waited == ["cuda:1"]
    with held(tmp_path, gpu, any_gpu=False) as device:
        assert device == gpu and not DeviceTurn(lock_path(tmp_path, "cuda:0")).take(), "one of several processes has its own"


def test_memory_is_that_of_the_steps_and_not_of_what_prepared_the_clips_or_made_samples(tmp_path, monkeypatch):
    used, task = {"peak": 9e9}, Line()
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: used["peak"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: used.update(peak=0))

    def loss(batch, index):
        used["peak"] = max(used["peak"], 1e9)
        return Line.loss(task, batch, index)

    task.loss, task.sample = loss, lambda weights, folder: used.update(peak=5e9) or {}
    trainer = Trainer(config(tmp_path), task)
    trainer.device = torch.device("cuda")
    trainer.run()
    assert [row["memory_gb"] for row in read_run(tmp_path).metrics()] == [1, 1, 1, 1]


def test_a_run_in_a_moved_data_folder_goes_on_where_it_is(tmp_path, monkeypatch):
    commands, popen = [], subprocess.Popen
    monkeypatch.setattr("training.runs.subprocess.Popen", lambda command, **rest: (commands.append(command), popen([sys.executable, "-c", ""], **rest))[1])
    old, new = tmp_path / "old", tmp_path / "my data"
    (old / "runs" / "one").mkdir(parents=True)
    (old / "clips").mkdir()
    save_config(load_config(None, ["target=vae_decoder", "model=m", f"dataset={old / 'clips'}", f"output_dir={old / 'runs' / 'one'}", f"data_dir={old}"]), old / "runs" / "one" / "config.yaml")
    Status("paused").write(old / "runs" / "one")
    assert Runs(old / "runs").resume("one").config.data_dir == str(old) and len(commands[0]) == 7
    old.rename(new)
    Status("paused").write(new / "runs" / "one")
    Runs(new / "runs").resume("one")
    told = load_config(commands[1][4], commands[1][7:])
    assert (told.output_dir, told.data_dir, told.dataset) == tuple(map(str, (new / "runs" / "one", new, new / "clips"))) and told == read_run(new / "runs" / "one").config
    (new / "runs" / "one").rename(tmp_path / "alone")
    alone = read_run(tmp_path / "alone").config
    assert (alone.output_dir, alone.data_dir, alone.dataset) == tuple(map(str, (tmp_path / "alone", old, old / "clips")))


def test_a_run_folder_in_which_another_process_is_at_work_is_left_alone(line, tmp_path):
    other = subprocess.Popen(["sleep", "600"])
    try:
        status = Status("training", other.pid, psutil.Process(other.pid).create_time(), step=7)
        status.write(tmp_path)
        with pytest.raises(ConfigError, match=f"is at work already, in process {other.pid}, at step 7"):
            train(config(tmp_path))
        assert read_run(tmp_path).pid == other.pid and read_run(tmp_path).state == "training", "what it says of itself stays"
    finally:
        other.kill()
        other.wait()
    assert train(config(tmp_path)).name == "step-4"
    Status("starting", os.getppid(), psutil.Process(os.getppid()).create_time()).write(tmp_path)
    assert train(config(tmp_path, "max_train_steps=6")).name == "step-6", "a launcher has said so of its own run"


def test_a_line_of_figures_that_was_cut_off_spoils_no_other(tmp_path):
    run(tmp_path)
    file = tmp_path / "metrics.jsonl"
    for words in ((), ("max_train_steps=6",)):
        file.write_text(file.read_text()[:-9])
        run(tmp_path, "resume=auto", *words)
    assert [row["step"] for row in read_run(tmp_path).metrics() if "loss" in row] == [1, 2, 3, 5, 6]


@pytest.mark.parametrize("words", [("resume=none", "max_train_steps=1"), ("keep_last=1", "max_train_steps=9")])  # those of an earlier start; those that are too many
def test_a_kill_while_a_checkpoint_is_dropped_leaves_none_that_only_looks_whole(tmp_path, monkeypatch, words):
    run(tmp_path, "keep_last=9", "max_train_steps=6")

    def killed(folder, *_, **__):
        (folder / "training_state.pt").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("training.trainer.shutil.rmtree", killed)
        run(tmp_path, *words)
    assert len(left := read_run(tmp_path).checkpoints()) > 1 and all((folder / "training_state.pt").exists() for folder in left)
    assert run(tmp_path, "max_train_steps=10").name == "step-10" and not list((tmp_path / "checkpoints").glob(".*"))


def test_the_environment_names_the_program_the_base_model_and_the_device(tmp_path):
    (part := tmp_path / "model" / "vae").mkdir(parents=True)
    (part / "a.safetensors").write_bytes(b"weights")
    told = environment(config(tmp_path, f"model={tmp_path / 'model'}"), "cuda (a GPU)")
    assert (told["commit"], told["model_hash"], told["device"]) == (own_commit(), model_hash(tmp_path / "model"), "cuda (a GPU)")
    assert environment(config(tmp_path), "cpu")["model_hash"] is None


def test_the_time_of_a_run_is_reckoned_from_the_nearest_of_its_kind(tmp_path):
    def wanted(*words):
        return load_config(None, ["target=lora", "model=m", "dataset=d", f"data_dir={tmp_path}", "mixed_precision=fp32", "max_train_steps=10", "num_frames=[8]", "train_batch_size=2", "sizes=[64x32]", *words])

    for name, seconds, *words in (("small", 1.0), ("large", 6.0, "train_batch_size=16"), ("temporal", 99.0, "target=temporal"), ("unmeasured", None, "train_batch_size=4")):
        (folder := tmp_path / "runs" / name).mkdir(parents=True)
        save_config(wanted(*words), folder / "config.yaml")
        rows = [{"step": step, "loss": 1, "seconds_per_step": took, "memory_gb": 2} for step, took in ((1, 50.0), (2, 50.0), (1, seconds))]  # resumed, and not yet where it was
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 2}\n{"st' if seconds else "")
    runs = Runs(tmp_path / "runs").list()
    for words, seconds, reckoned in (((), 10, False), (("sizes=[64x64]",), 20, True), (("num_frames=[1,16]", "gradient_accumulation_steps=4", "sizes=[64x32,64x32]"), 60, True), (("mixed_precision=bf16",), None, False), (("latent_cache=false",), None, False)):
        told = preflight(wanted(*words), runs)
        assert (told.seconds, told.reckoned, told.measured) == (seconds, reckoned, seconds == 10), words


def test_every_run_that_is_listed_can_be_had(tmp_path):
    for name in ("my run", "ünïcode", "a" * 80):
        (tmp_path / name).mkdir()
        save_config(config(tmp_path / name), tmp_path / name / "config.yaml")
    runs = Runs(tmp_path)
    assert {runs.get(run.name).name for run in runs.list()} == {"my run", "ünïcode", "a" * 80}
    for name in ("", ".", "..", "../x", "my run/checkpoints", ".trash", "none"):
        with pytest.raises(ConfigError, match="There is no run"):
            runs.get(name)


def test_a_resumed_run_has_the_optimizers_settings_of_now_with_the_moments_of_its_checkpoint(tmp_path):
    last = run(tmp_path, "weight_decay=0.1", "adam_beta2=0.9")
    trainer = Trainer(config(tmp_path, "weight_decay=0.3", "adam_beta2=0.99"), Line())
    trainer.resume()
    (group,) = trainer.optimizers[0].param_groups
    saved = torch.load(last / "training_state.pt", weights_only=True)["optimizers"][0]["state"][0]
    assert (group["weight_decay"], group["betas"]) == (0.3, (0.9, 0.99)) and torch.equal(trainer.optimizers[0].state[group["params"][0]]["exp_avg_sq"], saved["exp_avg_sq"])


def test_copies_beside_the_checkpoints_are_passed_over(tmp_path):
    last = run(tmp_path)
    shutil.copytree(last, last.with_name("step-best"))
    (tmp_path / "samples" / "step-best").mkdir(parents=True)
    told = read_run(tmp_path)
    assert [path.name for path in told.checkpoints()] == ["step-2", "step-4"] and told.samples() == {}


def test_a_run_that_is_paused_before_its_first_step_says_so(tmp_path, monkeypatch):
    def wait(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr("training.start.train", wait)
    save_config(config(tmp_path), tmp_path / "config.yaml")
    assert main(["--config", str(tmp_path / "config.yaml")]) == 0
    told = read_run(tmp_path)
    assert told.state == "paused" and "before it took a step" in told.message


def test_a_checkpoint_of_another_target_or_optimizer_is_refused_in_words(tmp_path):
    last = run(tmp_path / "whole")
    with pytest.raises(ConfigError, match="1 of its tensors do not fit the model, such as bias. Name the model and the target"):
        run(tmp_path / "part", f"resume={last}", task=Line(frozen=True))
    state = torch.load(last / "training_state.pt", weights_only=True)
    for moments in state["optimizers"][0]["state"].values():
        moments["state1"], moments["state2"] = moments.pop("exp_avg"), moments.pop("exp_avg_sq")
    torch.save(state, last / "training_state.pt")
    with pytest.raises(ConfigError, match="was made with another optimizer"):
        run(tmp_path / "eight", f"resume={last}")


def test_a_run_from_a_shell_keeps_a_log_with_its_command_and_a_redirected_one_says_nothing_twice(line, tmp_path, capsys):
    line.setattr(logging.root, "handlers", [])  # so that the command sets up its own
    words = ["--device", "cpu", *(f"{name}={value}" for name, value in (("target", "vae"), ("output_dir", tmp_path / "a b"), ("data_dir", tmp_path / "data"), ("checkpoint_every", 2), ("log_every", 1), ("report_to", "[]")))]
    log = tmp_path / "a b" / "log.txt"
    assert main([*words, "max_train_steps=2"]) == 0 and "step 2 of 2: loss " in log.read_text() and str(tmp_path / "a b" / "checkpoints" / "step-2") in capsys.readouterr().out
    assert main([*words, "max_train_steps=4"]) == 0
    line.setattr(Line, "loss", lambda *_: (torch.tensor(float("nan"), requires_grad=True), {}))
    assert main([*words, "max_train_steps=6"]) == 2 and "The loss is nan" in capsys.readouterr().err
    line.setattr(Line, "loss", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([*words, "max_train_steps=6"])
    told = log.read_text()
    assert told.count(f"{sys.executable} -m training --device cpu target=vae 'output_dir={tmp_path}/a b'") == 4 and told.split(" -m ")[0].count("\n") == 0, "the first line is a command"
    assert told.count("step 2 of 2: loss ") == told.count("step 4 of 4: loss ") == 1 and ", seconds per step " in told and "resumed at step 2" in told and told.count("error: The loss is nan") == 1 and told.rstrip().endswith("ZeroDivisionError: division by zero")
    with log.open("a") as file:  # as the tab starts it
        command = "import sys; from pathlib import Path; from training.runs import logged\nwith logged(Path(sys.argv[1]), ['x']): print('once')"
        subprocess.run([sys.executable, "-c", command, tmp_path / "a b"], stdout=file, stderr=file, check=True, cwd=Path(__file__).parents[2])
    assert log.read_text().removeprefix(told) == "once\n"


def test_stop_ends_a_run_whose_child_ends_by_itself_meanwhile(tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    save_config(config(tmp_path / "one"), tmp_path / "one" / "config.yaml")
    child = subprocess.Popen(["true"])
    gone = psutil.Process(child.pid)
    child.wait()
    process = subprocess.Popen(["sleep", "600"])
    Status("training", process.pid, psutil.Process(process.pid).create_time()).write(tmp_path / "one")
    monkeypatch.setattr(psutil.Process, "children", lambda *_, **__: [gone])
    assert Runs(tmp_path).stop("one").state == "paused" and not psutil.pid_exists(process.pid)
