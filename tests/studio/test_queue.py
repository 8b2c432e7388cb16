"""The queue and the library by themselves: order, fences, durability against SIGKILL, a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from core import save_video
from core.types import GenerationRequest, RequestError
from studio import db as db_module
from studio.db import Database, StorageError, file_system, refuse_network_file_system
from studio.library import Library, Query
from studio.queue import MAX_CRASHES, Queue

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "studio.db")


def request(prompt: str = "a red ball rolls right", **values) -> GenerationRequest:
    return GenerationRequest(prompt=prompt, **values)


def test_requests_are_resolved_and_leased_in_order(queue: Queue) -> None:
    ids = [queue.enqueue(request("first")), *queue.enqueue_many([request("second", seed=7), request("third")])]
    assert [job.id for job in queue.list()] == ids
    stored = queue.get(ids[1]).request
    assert stored.seed == 7 and stored.preset == "nano-4s" and stored.width == 128
    assert queue.get(ids[0]).request.seed is not None, "the drawn seed is recorded"
    assert [queue.lease("w", 60).id for _ in ids] == ids
    assert queue.lease("w", 60) is None


def test_a_request_has_the_defaults_of_what_its_model_was_made_of(queue: Queue, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "128-v0"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "source.json").write_text('{"checkpoint": "128-v0.pt"}')
    id = queue.enqueue(request(model="128-v0"))
    assert (queue.get(id).request.preset, queue.get(id).request.guidance_scale) == ("128-20s", 12.0)
    queue.edit(id, request(model="mira-nano"))
    assert queue.get(id).request.preset == "nano-4s"


def test_enqueue_many_stores_all_or_none(queue: Queue) -> None:
    with pytest.raises(RequestError, match="prompt is empty"):
        queue.enqueue_many([request(), request("  ")])
    with pytest.raises(RequestError, match="only half of one"):
        queue.enqueue(request("broken \ud83d emoji"))
    assert queue.list() == []


def test_waiting_requests_change_places(queue: Queue) -> None:
    a, b, c, d = queue.enqueue_many([request(name) for name in "abcd"])

    def order() -> str:
        return "".join(job.request.prompt for job in queue.list(states=["waiting"]))

    for id, to, expected in [(c, "first", "cabd"), (c, "up", "cabd"), (c, "down", "acbd"), (a, "last", "cbda"), (a, "down", "cbda"), (d, "up", "cdba"), (a, c, "acdb"), (a, b, "cdab")]:
        queue.move(id, to)
        assert order() == expected, (id, to)
    running = queue.lease("w", 60)
    assert running.id == c
    for id, to in ((c, "first"), (a, c), (a, "nonsense"), ("nonsense", "up")):
        with pytest.raises(RequestError, match="not waiting any more"):
            queue.move(id, to)
    assert order() == "dab"


def test_a_waiting_request_is_edited_in_its_place(queue: Queue) -> None:
    first, second = queue.enqueue_many([request("first"), request("second")])
    queue.edit(first, request("better", seed=3))
    assert [job.request.prompt for job in queue.list()] == ["better", "second"] and queue.get(first).request.seed == 3
    with pytest.raises(RequestError, match="prompt is empty"):
        queue.edit(first, request(""))
    queue.lease("w", 60)
    with pytest.raises(RequestError, match="has started or ended in the meantime"):
        queue.edit(first, request("too late"))
    assert queue.get(first).request.prompt == "better"


def test_an_edited_request_verifies_no_video_any_more(queue: Queue) -> None:
    id = queue.verify("a-video", request("first"))
    queue.edit(id, request("another"))
    assert queue.get(id).verifies is None


def test_cancelling_all_that_waits_can_be_undone(queue: Queue) -> None:
    ids = queue.enqueue_many([request(str(n)) for n in range(3)])
    queue.lease("w", 60)
    assert queue.cancel_waiting() == ids[1:]
    assert queue.counts()["running"] == 1 and queue.counts()["cancelled"] == 2
    queue.reinstate(ids[1:])
    assert [job.id for job in queue.list(states=["waiting"])] == ids[1:] and queue.get(ids[1]).finished is None
    assert queue.cancel_waiting() == queue.clear_finished() == ids[1:]
    queue.reinstate(ids[1:])
    assert [job.id for job in queue.list(states=["waiting"])] == ids[1:], "also what was cleared meanwhile is seen to wait"


def test_many_requests_are_moved_cancelled_and_retried_at_once(queue: Queue) -> None:
    a, b, c, d = queue.enqueue_many([request(name) for name in "abcd"])

    def order() -> str:
        return "".join(job.request.prompt for job in queue.list(states=["waiting"]))

    queue.move_first([d, b])
    assert order() == "bdac"
    running = queue.lease("w", 60)
    assert running.id == b and queue.cancel_many([b, c, d]) == [b, c, d] and queue.cancel_many([b]) == []
    assert order() == "a" and not queue.holds(b, "w", 1)
    with pytest.raises(RequestError, match="None of the ticked requests is waiting"):
        queue.move_first([b])
    assert queue.retry_many([a, d, b]) == [d, b] and order() == "adb"
    queue.reinstate([c])
    assert order() == "acdb"


def test_heartbeat_shows_progress_and_cancel_stops_the_worker(queue: Queue) -> None:
    id = queue.enqueue(request())
    job = queue.lease("w", 60)
    assert queue.heartbeat(id, "w", job.attempts, progress=0.5, stage="denoise", step=3, num_steps=6, seconds_left=2.5, preview="p.webp")
    assert queue.heartbeat(id, "w", job.attempts), "a bare heartbeat keeps what was told"
    seen = queue.get(id)
    assert (seen.state, seen.progress, seen.stage, seen.step, seen.num_steps, seen.seconds_left, seen.preview) == ("running", 0.5, "denoise", 3, 6, 2.5, "p.webp")
    assert queue.cancel(id) and queue.get(id).state == "cancelled"
    assert not queue.holds(id, "w", job.attempts)
    assert not queue.heartbeat(id, "w", job.attempts, progress=0.9)
    assert not queue.finish(id, "w", job.attempts, "late.mp4")
    assert not queue.cancel(id), "a second time it does nothing"
    assert queue.retry(id) == id and queue.get(id).state == "waiting" and queue.get(id).attempts == 1


def test_a_running_request_is_paused_and_goes_on_where_it_was(queue: Queue) -> None:
    id, other = queue.enqueue_many([request(), request("other")])
    with pytest.raises(RequestError, match="not running"):
        queue.pause_request(id)
    queue.lease("w", 60)
    assert queue.order(id, "w", 1) == "go"
    queue.pause_request(id)
    assert queue.order(id, "w", 1) == "pause" and queue.get(id).pausing
    assert queue.park(id, "w", 1, 3, 9, "paused") and not queue.park(id, "w", 1, 4, 9, "paused")
    seen = queue.get(id)
    assert (seen.state, seen.parked, seen.step, seen.num_steps, round(seen.progress, 6), seen.pausing) == ("paused", 3, 3, 9, 0.3, 0)
    assert queue.lease("w", 60).id == other and queue.resumable() == {id, other}
    assert queue.finish(other, "w", 1, "x.mp4") and queue.lease("w", 60) is None, "a paused one waits for its owner"
    queue.resume_request(id)
    with pytest.raises(RequestError, match="not paused"):
        queue.resume_request(id)
    again = queue.lease("w", 60)
    assert again.id == id and (again.parked, again.step, again.num_steps, round(again.progress, 6)) == (3, 3, 9, 0.3)
    queue.heartbeat(id, "w", 2, progress=0.6, step=6)
    assert queue.worker_died("w", "was killed") == 1 and queue.get(id).step == 3, "what a killed worker had resumed is resumed again"
    queue.lease("w", 60)
    queue.pause_request(id)
    assert queue.requeue() == 1 and queue.get(id).state == "paused", "a studio that is stopped in between keeps it paused"
    queue.edit(id, request("changed"))
    assert queue.get(id).parked == 0 and queue.get(id).progress == 0 and not queue.resumable()
    assert queue.cancel(id) and queue.get(id).state == "cancelled"


def test_a_database_of_an_earlier_version_keeps_its_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(db_module, "SCHEMA", db_module.SCHEMA[:6])
        old = Database(tmp_path / "studio.db")
        with old.write() as tx:
            tx.execute("INSERT INTO requests (id, position, request, state, created, verifies) VALUES ('r', 2.5, '{\"prompt\": \"a\"}', 'waiting', 1, 'v')")
        old.close()
    queue = Queue(Database(tmp_path / "studio.db"))
    job = queue.lease("w", 60)
    assert (job.id, job.request.prompt, job.verifies, job.parked) == ("r", "a", "v", 0)
    assert (job.request.temporal_guidance_scale, job.request.guidance_stop) == (0, 1), "what it did not know yet is as it was then, not as a preset says now"
    queue.pause_request("r")
    assert queue.park("r", "w", 1, 1, 2, "paused") and queue.get("r").state == "paused"


def test_a_late_worker_writes_nothing(queue: Queue) -> None:
    id = queue.enqueue(request())
    late = queue.lease("one", -1)
    assert queue.expire() == 1 and queue.expire() == 0
    again = queue.lease("one", 60)
    assert again.id == id and again.attempts == 2
    for write in (queue.heartbeat(id, "one", late.attempts), queue.finish(id, "one", late.attempts, "x"), queue.fail(id, "one", late.attempts, "x")):
        assert not write
    assert queue.finish(id, "one", again.attempts, "x.mp4") and queue.get(id).state == "done"


def test_a_failed_request_keeps_its_words_and_can_be_retried(queue: Queue) -> None:
    id, other = queue.enqueue_many([request(), request("other")])
    job = queue.lease("w", 60)
    assert queue.fail(id, "w", job.attempts, "The model is missing: run this.")
    assert queue.get(id).error == "The model is missing: run this."
    queue.retry(id)
    assert queue.get(id).error is None
    assert [j.id for j in queue.list(states=["waiting"])] == [other, id], "back at the end"
    with pytest.raises(RequestError, match="no request 'nonsense'"):
        queue.retry("nonsense")


def test_a_request_that_keeps_killing_its_worker_fails_in_words(queue: Queue) -> None:
    id = queue.enqueue(request())
    for attempt in range(MAX_CRASHES):
        assert queue.lease(f"w{attempt}", 60).attempts == attempt + 1
        assert queue.worker_died(f"w{attempt}", "was killed by SIGKILL") == 1
    job = queue.get(id)
    assert job.state == "failed" and "died 3 times" in job.error and "SIGKILL" in job.error
    queue.retry(id)
    assert queue.lease("w", 60).id == id
    assert queue.requeue("w") == 1 and queue.get(id).state == "waiting"


def test_pause_clear_and_versions(queue: Queue) -> None:
    ids = queue.enqueue_many([request(), request()])
    queue.pause()
    assert queue.paused and queue.lease("w", 60) is None
    queue.resume()
    job = queue.lease("w", 60)
    before = queue.version()
    assert queue.heartbeat(job.id, "w", 1) and queue.version() == before, "renewing the lease shows nothing new"
    assert queue.heartbeat(job.id, "w", 1, progress=0.1) and queue.version() > before
    queue.finish(job.id, "w", 1, "v.mp4")
    assert queue.counts() == {"waiting": 1, "running": 0, "paused": 0, "done": 1, "failed": 0, "cancelled": 0}
    assert queue.clear_finished() == [ids[0]]
    assert [j.id for j in queue.list()] == [ids[1]] and queue.get(ids[0]).state == "done"
    queue.restore([ids[0]])
    assert len(queue.list()) == 2


def test_a_full_disk_is_told_in_words(queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue.enqueue(request())
    with monkeypatch.context() as patch:
        patch.setattr(db_module, "free_bytes", lambda folder: 2**20)
        with pytest.raises(StorageError, match=r"disk is full: 1 MiB free at .*, 64.* needed"):
            queue.enqueue(request())
    pages = queue.db.connection().execute("PRAGMA page_count").fetchone()[0]
    queue.db.connection().execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageError, match="disk is full"):
        queue.enqueue_many([request("x" * 2000) for _ in range(100)])
    assert queue.counts()["waiting"] == 1, "what was there is there still, and nothing in halves"
    queue.db.connection().execute("PRAGMA max_page_count = 1000000")
    assert queue.enqueue(request())


def test_network_file_systems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n40 22 0:50 / /mnt/my\\040share rw shared:5 - nfs4 server:/x rw\n"
    assert file_system(Path("/mnt/my share/data"), mounts) == "nfs4"
    assert file_system(Path("/mnt/my"), mounts) == "ext4"
    monkeypatch.setattr(db_module, "file_system", lambda folder: "nfs4")
    with pytest.raises(StorageError, match="network file system .nfs4.*--data-dir"):
        refuse_network_file_system(tmp_path)


def test_a_data_folder_that_cannot_be_used_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be used: .*--data-dir"):
        Database(tmp_path / "file" / "studio.db")
    (tmp_path / "studio.db").write_text("this is not a database, but long enough to be looked at " * 20)
    with pytest.raises(StorageError, match="file is not a database. Move it away"):
        Database(tmp_path / "studio.db")
    Database(tmp_path / "newer.db").connection().execute("PRAGMA user_version = 99")
    with pytest.raises(StorageError, match="schema 99"):
        Database(tmp_path / "newer.db")


WORKER = """
import sys, time
from studio.queue import Queue
queue, name = Queue(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
while (job := queue.lease(name, 60)) is not None:
    assert queue.heartbeat(job.id, name, job.attempts, progress=0.5)
    if name == "w0":
        print("holding", flush=True)
        time.sleep(60)
    assert queue.finish(job.id, name, job.attempts, name)
"""


def test_four_processes_one_killed_each_request_done_once(queue: Queue) -> None:
    ids = queue.enqueue_many([request(f"number {n}") for n in range(200)])
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(queue.db.path), f"w{n}"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for n in range(4)
    ]  # fmt: skip
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 4
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
        if worker is workers[0]:
            assert worker.stdout.readline() == "holding\n"
    victim = workers[0]
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    for worker in workers[1:]:
        assert worker.wait(timeout=60) == 0
    held = queue.list(states=["running"])
    assert len(held) == 1 and queue.worker_died("w0", "was killed") == 1
    last = queue.lease("w9", 60)
    assert last.id == held[0].id and last.attempts == 2 and queue.finish(last.id, "w9", 2, "w9")
    jobs = queue.list(limit=1000)
    assert {job.id for job in jobs} == set(ids) and {job.state for job in jobs} == {"done"}
    assert sorted(job.attempts for job in jobs) == [1] * 199 + [2]


def test_library_lists_searches_deletes_and_brings_back(tmp_path: Path) -> None:
    library = Library(tmp_path, Database(tmp_path / "studio.db"))
    for n, prompt in enumerate(("a red ball", "a blue 100% cube", "a red cube")):
        file = tmp_path / "made.mp4"
        file.write_bytes(b"video")
        file.with_suffix(".jpg").write_bytes(b"poster")
        library.add(f"v{n}", request(prompt).resolved(), file, poster=file.with_suffix(".jpg"), elapsed=1.0, created=1000.0 + n)
        assert not file.exists()
    assert [v.id for v in library.list()] == ["v2", "v1", "v0"] and library.get("v0").request.prompt == "a red ball"
    assert [v.id for v in library.list(Query("red"))] == ["v2", "v0"] and [v.id for v in library.list(Query("CUBE red"))] == ["v2"]
    assert [v.id for v in library.list(Query("100%"))] == ["v1"] and library.count(Query("%")) == 1 and library.count() == 3
    assert [v.id for v in library.list(limit=1, offset=1)] == ["v1"]
    assert library.get("v1").seconds == 4.0

    version = library.version()
    library.set_favourite(["v1"], True)
    assert library.version() > version and [v.id for v in library.list(Query(favourites=True))] == ["v1"]
    library.delete("v1")
    assert library.get("v1") is None and not (library.videos_dir / "v1.mp4").exists()
    library.undelete("v1")
    assert Path(library.get("v1").path).exists() and library.get("v1").favourite
    with pytest.raises(RequestError, match="no video 'v1'"):
        library.undelete("v1")
    library.delete("v2")
    assert library.purge() == 0
    assert library.purge(older_than_days=-1) == 1
    assert not list(library.trash_dir.iterdir()) and library.count() == 2


def test_recover_makes_list_and_folders_agree(tmp_path: Path) -> None:
    """The moments at which a kill can leave a file moved and the database not told, and a file put there by hand."""
    queue = Queue(tmp_path / "studio.db")
    library = Library(tmp_path, queue.db)
    id = queue.enqueue(request("a blue box", seed=5))
    job = queue.lease("w", 60)
    frames = np.zeros((4, 32, 48, 3), np.uint8)
    save_video(frames, library.videos_dir / f"{id}.mp4", fps=6, settings=job.request.to_dict())
    save_video(frames, library.videos_dir / "mine.mp4", fps=6)
    (library.videos_dir / "broken.mp4").write_bytes(b"no video")
    (library.videos_dir / "mine.mp4").with_name(os.fsdecode(b"latin-\xe9.mp4")).write_bytes((library.videos_dir / "mine.mp4").read_bytes())

    assert library.recover(queue) == 2 and library.recover(queue) == 0
    assert queue.get(id).state == "done" and queue.get(id).video == str(library.videos_dir / f"{id}.mp4")
    assert queue.get(id).started is None, "how long it took is not known"
    found = library.get(id)
    assert found.request.prompt == "a blue box" and found.request.seed == 5
    assert (found.width, found.height, found.num_frames, found.fps) == (48, 32, 4, 6)
    assert {video.request.prompt for video in library.list()} == {"a blue box", "mine"}

    os.replace(found.path, library.trash_dir / f"{id}.mp4")
    library.recover(queue)
    assert Path(library.get(id).path).exists(), "deleted on disk only: not deleted"
    library.delete(id)
    os.replace(library.trash_dir / f"{id}.mp4", found.path)
    library.recover(queue)
    assert library.get(id) is not None, "brought back on disk only: brought back"


def test_a_request_starts_from_the_studios_own_files_alone(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "data" / "studio.db")
    inside = tmp_path / "data" / "videos" / "v.mp4"
    assert queue.get(queue.enqueue(GenerationRequest(prompt="x", start_from=str(inside)))).request.start_from == str(inside)
    for outside in (tmp_path / "v.mp4", inside.parent / ".." / "studio.db", Path("/etc/passwd")):
        with pytest.raises(RequestError, match="none of this studio's files"):
            queue.enqueue(GenerationRequest(prompt="x", start_from=str(outside)))
    with pytest.raises(RequestError, match="none of this studio's files"):
        queue.edit(queue.list()[0].id, GenerationRequest(prompt="x", start_from="/etc/passwd"))


def test_requests_use_loras_of_the_data_folder_only(queue: Queue, tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "snow.safetensors").touch()
    elsewhere = tmp_path / "elsewhere.safetensors"
    elsewhere.touch()
    assert queue.get(queue.enqueue(request(loras="snow@0.5"))).request.loras == "snow@0.5"
    for name in ("snov", str(elsewhere)):
        with pytest.raises(RequestError, match="There is no LoRA .*Installed: snow"):
            queue.enqueue(request(loras=name))


def test_undo_brings_a_paused_request_back_as_it_was(queue: Queue) -> None:
    id, other = queue.enqueue(GenerationRequest(prompt="One.")), queue.enqueue(GenerationRequest(prompt="Two."))
    job = queue.lease("w", 60)
    queue.park(id, "w", job.attempts, 5, 20, "paused")
    before = queue.get(id)
    assert queue.cancel_many([id, other]) == [id, other] and queue.get(id).state == "cancelled" and queue.resumable() == {id}
    queue.reinstate([id, other])
    assert queue.get(id) == before and queue.get(other).state == "waiting"
    queue.cancel(id)
    queue.db.connection().execute("UPDATE requests SET finished = finished - 4000 WHERE id = ?", (id,))
    assert not queue.resumable(), "its snapshot is kept for a while only"
    assert queue.get(queue.retry(id)).parked == 0
