"""The panes of the Training tab, and what their buttons do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from core.lineage import base_model
from core.loras import FOLDER
from core.types import GenerationRequest
from training.config import ConfigError
from training.runs import Run
from training.use import use_checkpoint

from .comparison import MOST
from .components.run_list import render_chore, render_checkpoints, render_log, render_run, render_runs, render_samples
from .examples import example_prompts
from .walls import Axis

if TYPE_CHECKING:
    from .screen import Session
    from .services import Services

TRAINING_PANES = ("runs", "run", "samples", "checkpoints", "run_log", "chore")
TRAINING_ACTIONS = frozenset("run-open run-first run-pause run-stop run-resume run-save run-sample run-delete run-scale run-log run-compare chore-cancel".split())


def training_key(session: Session) -> tuple[Any, ...]:
    """What ``training_panes`` shows beside the studio's own state (``Services.version``)."""
    return session.run, session.log_scale, session.run_log


def training_panes(services: Services, session: Session) -> dict[str, str]:
    """What each of TRAINING_PANES shows."""
    runs = services.runs.list()
    run = chosen_run(runs, session)
    return {
        "runs": render_runs(runs, run.name if run else None),
        "run": render_run(run, session.log_scale, runs_before(runs, run) if run else ()),
        "samples": render_samples(run),
        "checkpoints": render_checkpoints(run),
        "run_log": render_log(run, session.run_log),
        "chore": render_chore(services.chores.current),
    }


def chosen_run(runs: Sequence[Run], session: Session) -> Run | None:
    """The run that a page shows: the one that was picked, else one at work, else the newest."""
    return next((run for run in runs if run.name == session.run), None) or next((run for run in runs if run.working), None) or next(iter(runs), None)


def runs_before(runs: Sequence[Run], run: Run) -> list[Run]:
    """The runs that get the device before a waiting one: those that have it, and those that asked before it."""
    return [other for other in sorted(runs, key=lambda other: (other.state == "waiting", other.asked)) if other.working and other.name != run.name and (other.state != "waiting" or other.asked < run.asked)]


def training_act(services: Services, session: Session, action: str, id: str) -> None:
    """Do one of TRAINING_ACTIONS. Raises ConfigError, or RequestError and StorageError where requests are queued."""
    runs = services.runs
    match action:
        case "run-open":
            session.run = id
        case "run-first":
            runs.put_first(id)
        case "run-pause":
            runs.pause(id)
        case "run-stop":
            runs.stop(id)
        case "run-resume":
            session.run = runs.resume(id, services.training_device).name
        case "run-save":
            runs.save_now(id)
        case "run-sample":
            runs.sample_now(id)
        case "run-delete":
            session.offer_undo(f"The run {id} was deleted, with its checkpoints.", "run", (runs.delete(id),))
            session.run = None
        case "run-scale":
            session.log_scale = not session.log_scale
        case "run-log":
            session.run_log = not session.run_log
        case "run-compare":
            wall = services.walls.require(compare_checkpoints(services, runs.get(id)))
            before, first = session.compared, wall.cells[: len(wall.axes[0].values)]
            session.wall, session.selected, session.compared = wall.id, None, (first[0], *first[1:][1 - MOST :])
            session.offer_undo("They come here as they are made, and all of them into a grid on the Generate tab.", "compare", before)
        case "chore-cancel":
            services.chores.cancel()


def compare_checkpoints(services: Services, run: Run) -> str:
    """Queue the run's prompts with each of its checkpoints, and with what it began from, as a grid; its id. Raises ConfigError, RequestError or StorageError."""
    steps = [int(path.name.split("-")[1]) for path in run.checkpoints()]
    if run.config is None or not steps:
        raise ConfigError(f"{run.name} has no checkpoint yet.")
    used = [request_with(services, run, step, "any") for step in steps]
    field = "loras" if used[0].loras else "model"
    values = (None if field == "loras" else run.config.model, *(getattr(request, field) for request in used))
    prompts = run.config.validation_prompts or [example_prompts(base_model(run.config.model, services.data_dir))[0]]
    axes = [Axis(field, values), *([Axis("prompt", tuple(prompts))] if len(prompts) > 1 else [])]
    return services.walls.enqueue_grid(used[0].replace(prompt=prompts[0], seed=run.config.seed), axes)


def request_with(services: Services, run: Run, step: int, prompt: str) -> GenerationRequest:
    """A request that uses a checkpoint, which is made a model or a LoRA now, with the defaults of the model that the run began with. Raises ConfigError."""
    made = use_checkpoint(run, services.data_dir, step)
    used = {"model": run.config.model, "loras": made.stem} if made.parent.name == FOLDER else {"model": made.name}
    return GenerationRequest(prompt, **used).filled(services.data_dir)
