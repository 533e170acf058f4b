"""The run that a call is for: the calling thread's or task's own, the outermost, or the named one."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import pytest

from heimdall_tracking import (
    ActiveRun,
    Dataset,
    InvalidInputError,
    MLflowTracker,
    NotFoundError,
    RunStateError,
)
from support.helpers import PATIENCE_S, write

TRIALS = range(12)
STEPS = range(4)


@pytest.fixture(params=["sqlite", "postgresql"])
def shared(request: pytest.FixtureRequest, uri: str, tmp_path: Path) -> Iterator[MLflowTracker]:
    """A tracker of either database."""
    is_file = request.param == "sqlite"
    place = uri if is_file else request.getfixturevalue("postgres_uri")
    tracker = MLflowTracker(place, str(tmp_path / "artifacts"), experiment_name="tests")
    yield tracker
    tracker.end_run()


def trial(tracker: MLflowTracker, number: int) -> str:
    """One nested run that logs its own number alone."""
    with tracker.run(f"trial-{number}", nested=True) as run:
        tracker.log_param("number", number)
        for step in STEPS:
            tracker.log_metric("number", number, step=step)
            threading.Event().wait(0.002)
        tracker.set_tag("number", number)
        assert tracker.active_run_id == run.run_id
    return str(run.run_id)


def check_trials(tracker: MLflowTracker, runs: dict[int, str], parent: str) -> None:
    for number, run_id in runs.items():
        run = tracker.get_run(run_id)
        values = [point.value for point in tracker.get_metric_history(run_id, "number")]
        assert (run.status, run.run_name) == ("FINISHED", f"trial-{number}")
        assert values == [number] * len(STEPS)
        assert run.params == {"number": str(number)}
        assert (run.tags["number"], run.tags["mlflow.parentRunId"]) == (str(number), parent)
    outer = tracker.get_run(parent)
    assert (outer.metrics, outer.params) == ({}, {})


def in_thread(call: Callable[[], Any]) -> Any:
    """Return the answer of a call in a new thread."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(call()))
    thread.start()
    thread.join()
    (answer,) = answers
    return answer


class Stranger:
    """A thread that was started before any run, and so has none of its own."""

    def __init__(self) -> None:
        self._pool = ThreadPool(1)

    def __call__(self, call: Callable[[], Any]) -> Any:
        return self._pool.apply(call)

    def close(self) -> None:
        self._pool.terminate()


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    stranger = Stranger()
    yield stranger
    stranger.close()


def test_trials_in_threads_of_a_pool_are_runs_of_their_own(shared):
    with shared.run("study") as study, ThreadPoolExecutor(4) as pool:
        runs = dict(zip(TRIALS, pool.map(lambda number: trial(shared, number), TRIALS), strict=True))
        assert shared.active_run_id == study.run_id
    check_trials(shared, runs, study.run_id)


def test_trials_in_a_pool_of_multiprocessing_are_runs_of_their_own(tracker):
    with tracker.run("study") as study, ThreadPool(3) as pool:
        runs = dict(zip(TRIALS, pool.map(lambda number: trial(tracker, number), TRIALS), strict=True))
    check_trials(tracker, runs, study.run_id)


def test_a_search_with_two_jobs_has_a_run_for_each_trial(tracker):
    """The way of Optuna with `n_jobs=2`: a trial is submitted whenever another one has ended."""
    runs: dict[int, str] = {}

    def optimize(number: int) -> None:
        runs[number] = trial(tracker, number)

    with tracker.run("study") as study:
        futures = set()
        with ThreadPoolExecutor(max_workers=2) as executor:
            for number in TRIALS:
                if len(futures) >= 2:
                    done, futures = wait(futures, return_when="FIRST_COMPLETED")
                    for future in done:
                        future.result()
                futures.add(executor.submit(optimize, number))
    assert sorted(runs) == list(TRIALS)
    check_trials(tracker, runs, study.run_id)


def test_an_end_ends_the_run_of_its_own_thread_alone(tracker):
    started, ended = threading.Barrier(4), threading.Barrier(4)
    runs: dict[str, str] = {}

    def work(name: str, status: str) -> None:
        runs[name] = tracker.start_run(name, nested=True)
        started.wait(PATIENCE_S)
        # The first to end ends nothing of the others.
        if name != "first":
            ended.wait(PATIENCE_S)
        tracker.log_metric("after", 1.0)
        tracker.end_run(status)
        if name == "first":
            assert tracker.active_run_id == outer
            ended.wait(PATIENCE_S)

    outer = tracker.start_run("outer")
    threads = [
        threading.Thread(target=work, args=(name, status))
        for name, status in (("first", "FAILED"), ("second", "FINISHED"), ("third", "KILLED"))
    ]
    for thread in threads:
        thread.start()
    started.wait(PATIENCE_S)
    ended.wait(PATIENCE_S)
    for thread in threads:
        thread.join()
    assert tracker.active_run_ids == [outer]
    tracker.end_run()
    found = {name: tracker.get_run(run_id) for name, run_id in runs.items()}
    statuses = {name: run.status for name, run in found.items()}
    assert statuses == {"first": "FAILED", "second": "FINISHED", "third": "KILLED"}
    assert all(run.metrics == {"after": 1.0} for run in found.values())
    assert tracker.get_run(outer).metrics == {}


def test_a_thread_of_a_pool_forgets_the_run_of_its_last_item(tracker):
    """The one thread of the pool is started in the first run, and then has items of other runs."""
    with ThreadPoolExecutor(1) as pool:
        active = []
        for name in ("first", "second"):
            with tracker.run(name) as outer, tracker.run("inner", nested=True) as inner:
                active.append(pool.submit(lambda: tracker.active_run_ids).result())
                assert active[-1] == [outer.run_id, inner.run_id]
        with tracker.run("outer") as outer:
            inside = tracker.start_run("open", nested=True)
            assert pool.submit(lambda: tracker.active_run_id).result() == inside
            tracker.end_run()
            assert pool.submit(lambda: tracker.active_run_id).result() == outer.run_id
        assert pool.submit(lambda: tracker.active_run_id).result() is None


def test_a_call_of_a_pool_has_the_run_of_the_place_that_submitted_it(tracker, stranger):
    """The one thread of the pool is started in the inner run, which the stranger does not have."""
    with (
        ThreadPoolExecutor(1) as pool,
        tracker.run("outer") as outer,
        tracker.run("inner", nested=True) as inner,
    ):
        assert pool.submit(lambda: tracker.active_run_id).result() == inner.run_id
        assert stranger(lambda: pool.submit(lambda: tracker.active_run_id).result()) == outer.run_id


def test_a_thread_logs_into_the_run_that_it_was_started_in(tracker):
    with tracker.run("outer") as outer, tracker.run("inner", nested=True) as inner:
        in_thread(lambda: tracker.log_metric("loss", 1.0))
        assert in_thread(lambda: tracker.active_run_ids) == [outer.run_id, inner.run_id]
        # The thread of a thread as well.
        assert in_thread(lambda: in_thread(lambda: tracker.active_run_id)) == inner.run_id
    assert tracker.get_run(inner.run_id).metrics == {"loss": 1.0}
    assert tracker.get_run(outer.run_id).metrics == {}


def test_a_thread_goes_back_to_the_outer_run_when_its_own_has_ended_elsewhere(tracker):
    with tracker.run("outer") as outer:
        ended = threading.Event()
        with tracker.run("inner", nested=True), ThreadPoolExecutor(1) as pool:
            later = pool.submit(lambda: ended.wait(PATIENCE_S) and tracker.active_run_id)
            tracker.end_run()
            ended.set()
            assert later.result() == outer.run_id


def test_a_thread_that_has_no_run_sees_the_outermost(tracker, stranger):
    assert stranger(lambda: tracker.active_run_id) is None
    with tracker.run("outer") as outer, tracker.run("inner", nested=True) as inner:
        assert tracker.active_run_id == inner.run_id
        assert stranger(lambda: tracker.active_run_ids) == [outer.run_id]
        stranger(lambda: tracker.log_metric("from", 1.0))
        with pytest.raises(RunStateError, match=outer.run_id):
            stranger(lambda: tracker.start_run("second"))
    assert tracker.get_run(outer.run_id).metrics == {"from": 1.0}
    assert tracker.get_run(inner.run_id).metrics == {}


def test_tasks_are_given_the_run_of_their_parent_and_have_runs_of_their_own(shared):
    async def one(number: int) -> str:
        with shared.run(f"trial-{number}", nested=True) as run:
            shared.log_param("number", number)
            for step in STEPS:
                shared.log_metric("number", number, step=step)
                await asyncio.sleep(0.002)
            shared.set_tag("number", number)
            assert shared.active_run_id == run.run_id
        return str(run.run_id)

    async def main() -> tuple[str, dict[int, str]]:
        with shared.run("study") as study:
            found = await asyncio.gather(*map(one, TRIALS))
            assert shared.active_run_id == study.run_id
        return str(study.run_id), dict(zip(TRIALS, found, strict=True))

    parent, runs = asyncio.run(main())
    check_trials(shared, runs, parent)


def test_threads_of_a_task_log_into_its_run(tracker):
    async def one(number: int) -> str:
        loop = asyncio.get_running_loop()
        with tracker.run(f"task-{number}", nested=True) as run:
            await asyncio.to_thread(tracker.log_metric, "thread", number)
            await loop.run_in_executor(None, tracker.log_metric, "default", number)
            await loop.run_in_executor(pool, tracker.log_metric, "pool", number)
            await asyncio.sleep(0)
        return str(run.run_id)

    async def main() -> list[str]:
        with tracker.run("outer"):
            return await asyncio.gather(*map(one, TRIALS))

    with ThreadPoolExecutor(2) as pool:
        runs = asyncio.run(main())
    for number, run_id in zip(TRIALS, runs, strict=True):
        assert tracker.get_run(run_id).metrics == dict.fromkeys(("thread", "default", "pool"), number)


def test_runs_of_other_threads_end_with_the_run_that_they_are_nested_in(tracker):
    with tracker.run("outer") as outer:
        theirs = in_thread(lambda: tracker.start_run("left open", nested=True))
        deeper = in_thread(lambda: tracker.start_run("beside", nested=True))
        assert tracker.active_run_ids == [outer.run_id]
    assert tracker.active_run_ids == []
    assert [tracker.get_run(run_id).status for run_id in (theirs, deeper)] == ["FINISHED"] * 2


def test_a_run_that_a_thread_left_open_does_not_end_with_its_sibling(tracker):
    with tracker.run("outer"):
        theirs = in_thread(lambda: tracker.start_run("theirs", nested=True))
        with tracker.run("mine", nested=True):
            pass
        assert tracker.get_run(theirs).status == "RUNNING"


def test_the_run_of_a_block_logs_to_itself_whatever_is_active(tracker, tmp_path):
    write(tmp_path / "file.txt")
    write(tmp_path / "folder" / "file.txt")
    with tracker.run("outer") as outer, tracker.run("inner", nested=True) as inner:
        outer.log_metric("one", 1.0, step=1)
        outer.log_metrics({"two": 2.0}, step=1)
        outer.log_param("a", 1)
        outer.log_params({"b": 2})
        outer.log_batch(metrics=[("three", 3.0)], params={"c": 3}, tags={"d": 4})
        outer.set_tag("e", 5)
        outer.set_tags({"f": 6, "gone": 7})
        outer.delete_tag("gone")
        outer.log_text("text", "text.txt")
        outer.log_dict({"a": 1}, "dict.json")
        outer.log_artifact(tmp_path / "file.txt", "files").wait(PATIENCE_S)
        outer.log_artifacts_dir(tmp_path / "folder", "folder")
        outer.log_input(Dataset("july.csv", data=b"lat"), context="training")
        assert tracker.active_run_id == inner.run_id
    run = tracker.get_run(outer.run_id)
    assert run.metrics == {"one": 1.0, "two": 2.0, "three": 3.0}
    assert run.params == {"a": "1", "b": "2", "c": "3"}
    assert {"d": "4", "e": "5", "f": "6"}.items() <= run.tags.items()
    assert "gone" not in run.tags
    assert [dataset.name for dataset in run.inputs] == ["july.csv"]
    assert [info.path for info in tracker.list_artifacts(run_id=outer.run_id)] == [
        "dict.json",
        "files",
        "folder",
        "text.txt",
    ]
    empty = tracker.get_run(inner.run_id)
    assert (empty.metrics, empty.params, empty.inputs) == ({}, {}, [])
    assert tracker.list_artifacts(run_id=inner.run_id) == []


def test_figures_images_and_tables_go_to_the_run_of_a_block(tracker):
    np = pytest.importorskip("numpy")
    pytest.importorskip("PIL")
    pytest.importorskip("pandas")
    figure = pytest.importorskip("matplotlib.figure").Figure(figsize=(1, 1))
    with tracker.run("outer") as outer, tracker.run("inner", nested=True) as inner:
        outer.log_figure(figure, "figure.png")
        outer.log_image(np.zeros((2, 2)), "image.png")
        outer.log_image(np.zeros((2, 2)), key="series", step=1)
        outer.log_table({"a": [1]}, "table.json")
    paths = {info.path for info in tracker.list_artifacts(run_id=outer.run_id)}
    assert paths == {"figure.png", "image.png", "images", "table.json"}
    tags = tracker.get_run(outer.run_id).tags
    assert tags["mlflow.loggedImages"] == "True"
    assert "table.json" in tags["mlflow.loggedArtifacts"]
    assert tracker.list_artifacts(run_id=inner.run_id) == []
    assert not [key for key in tracker.get_run(inner.run_id).tags if key.startswith("mlflow.logged")]


def test_a_model_goes_to_the_run_of_a_block(tracker):
    torch = pytest.importorskip("torch")
    net = torch.nn.Linear(2, 1)
    with tracker.run("outer") as outer:
        with tracker.run("inner", nested=True) as inner:
            outer.log_model(net, "first")
            tracker.log_model(net, "theirs")
        # The run has ended, and the models of both are remembered.
        info = inner.log_model(net, "second")
    assert (info.run_id, info.model_uri) == (inner.run_id, f"runs:/{inner.run_id}/second")
    listed = {}
    for run in (outer, inner):
        tag = tracker.get_run(run.run_id).tags["mlflow.log-model.history"]
        listed[run] = [entry["artifact_path"] for entry in json.loads(tag)]
        assert {info.path for info in tracker.list_artifacts(run_id=run.run_id)} == set(listed[run])
    assert listed == {outer: ["first"], inner: ["theirs", "second"]}


def test_the_run_of_a_block_logs_to_itself_from_other_threads_and_after_its_end(shared, stranger):
    with shared.run("first") as first, shared.run("inner", nested=True):
        stranger(lambda: first.log_metric("inside", 1.0))
    with shared.run("second") as second:
        stranger(lambda: first.log_metric("after", 2.0))
        first.log_text("late", "late.txt")
        second.log_param("a", 1)
    found = shared.get_run(first.run_id)
    assert (found.status, found.metrics) == ("FINISHED", {"inside": 1.0, "after": 2.0})
    assert shared.load_text(first.run_id, "late.txt") == "late"
    assert shared.get_run(second.run_id).metrics == {}


def test_rows_are_appended_to_tables_of_runs_in_other_threads_and_of_runs_that_have_ended(tracker):
    pytest.importorskip("pandas")
    runs: list[ActiveRun] = []

    def work(number: int) -> None:
        with tracker.run(nested=True) as run:
            runs.append(run)
            for row in range(3):
                tracker.log_table({"number": [number], "row": [row]}, "t.json")

    with tracker.run("outer") as outer, ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    outer.log_table({"a": [1]}, "t.json")
    for run in runs:
        before = tracker.load_dict(run.run_id, "t.json")["data"]
        assert [row for _, row in before] == [0, 1, 2]
        assert len({number for number, _ in before}) == 1
        run.log_table({"number": [9], "row": [3]}, "t.json")
        assert tracker.load_dict(run.run_id, "t.json")["data"] == [*before, [9, 3]]


CALLS: dict[str, tuple[Any, ...]] = {
    "log_param": ("a", 1),
    "log_params": ({"a": 1},),
    "log_metric": ("a", 1),
    "log_metrics": ({"a": 1},),
    "log_batch": ([("a", 1)],),
    "set_tag": ("a", 1),
    "set_tags": ({"a": 1},),
    "delete_tag": ("a",),
    "log_artifact": ("missing",),
    "log_artifacts_dir": ("missing",),
    "log_text": ("text", "a.txt"),
    "log_dict": ({}, "a.json"),
    "log_figure": (None, "a.png"),
    "log_image": (None, "a.png"),
    "log_table": ({"a": [1]}, "a.json"),
    "log_input": (None,),
    "log_model": (None,),
    "end": (),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_block_that_was_not_entered_logs_nothing(tracker, call):
    block = tracker.run("later")
    with tracker.run("other") as other, pytest.raises(RunStateError, match="the run has not started"):
        getattr(block, call)(*CALLS[call])
    assert tracker.get_run(other.run_id).metrics == {}


def test_a_block_logs_by_the_calls_of_the_tracker_with_their_arguments():
    """A parameter that one of them gets must not be missed at the other."""
    for call in CALLS.keys() - {"end"}:
        ours = inspect.signature(getattr(ActiveRun, call)).parameters
        theirs = inspect.signature(getattr(MLflowTracker, call)).parameters
        assert [*ours, "run_id"] == list(theirs)
        assert {name: it.default for name, it in ours.items()} == {
            name: it.default for name, it in theirs.items() if name != "run_id"
        }


def test_a_run_is_ended_from_another_thread_with_its_nested_runs(tracker, stranger):
    with tracker.run("outer") as outer:
        with tracker.run("middle", nested=True) as middle:
            inner = tracker.start_run("inner", nested=True)
            stranger(lambda: middle.end("KILLED"))
            assert tracker.active_run_ids == [outer.run_id]
        middle.end("FAILED")
    assert [tracker.get_run(run_id).status for run_id in (middle.run_id, inner)] == ["KILLED"] * 2
    assert tracker.get_run(outer.run_id).status == "FINISHED"
    with tracker.run() as run, pytest.raises(InvalidInputError, match="FINISHED, FAILED or KILLED"):
        run.end("RUNNING")


class Announcing(MLflowTracker):
    """A tracker of the user's, whose start and end do more."""

    def start_run(self, *arguments: Any, **named: Any) -> str:
        run_id = super().start_run(*arguments, **named)
        self.log_param("announced", "yes")
        return run_id

    def end_run(self, status: str = "FINISHED") -> None:
        self.set_tag("ended", status)
        super().end_run(status)


def test_the_start_and_the_end_of_a_subclass_are_called(uri):
    tracker = Announcing(uri, experiment_name="tests")
    with tracker.run("outer") as outer:
        tracker.start_run("inner", nested=True)
        inner = tracker.active_run_id
    found = [tracker.get_run(run_id) for run_id in (outer.run_id, inner)]
    assert [run.params for run in found] == [{"announced": "yes"}] * 2
    assert [(run.tags["ended"], run.status) for run in found] == [("FINISHED", "FINISHED")] * 2


def test_a_block_of_an_object_that_only_starts_and_ends_runs():
    class Other:
        def __init__(self) -> None:
            self.active_run_ids: list[str] = []
            self.ended: list[tuple[str, str]] = []

        def start_run(self, name: str) -> str:
            self.active_run_ids.append(name)
            return name

        def end_run(self, status: str = "FINISHED") -> None:
            self.ended.append((self.active_run_ids.pop(), status))

    other = Other()
    with ActiveRun(other, lambda: other.start_run(name="outer")):
        with pytest.raises(ValueError, match="mine"), ActiveRun(other, lambda: other.start_run(name="inner")):
            raise ValueError("mine")
        other.start_run("left open")
    assert other.ended == [("inner", "FAILED"), ("left open", "FINISHED"), ("outer", "FINISHED")]


def test_a_call_names_a_run_that_has_ended(shared):
    with shared.run("ended") as ended:
        shared.log_param("lr", 0.1)
    with shared.run("active") as active:
        shared.log_metric("late", 1.0, run_id=ended.run_id)
        shared.log_metrics({"late": 2.0}, step=1, run_id=ended.run_id)
        shared.log_text("text", "late.txt", run_id=ended.run_id)
        shared.log_input(Dataset("july.csv", data=b"lat"), run_id=ended.run_id)
        shared.set_tag("late", True, run_id=ended.run_id)
    run = shared.get_run(ended.run_id)
    assert (run.status, run.metrics, run.params) == ("FINISHED", {"late": 2.0}, {"lr": "0.1"})
    assert (run.tags["late"], len(run.inputs)) == ("True", 1)
    assert shared.load_text(ended.run_id, "late.txt") == "text"
    assert shared.get_run(active.run_id).metrics == {}


def test_a_call_names_a_run_without_an_active_one(tracker):
    with tracker.run() as run:
        pass
    assert tracker.active_run_id is None
    tracker.log_metric("late", 1.0, run_id=run.run_id)
    assert tracker.active_run_id is None
    assert tracker.get_run(run.run_id).metrics == {"late": 1.0}


def test_a_call_names_a_run_of_another_process_which_goes_on(tracker, uri, start_script):
    pytest.importorskip("pandas")
    process = start_script(
        """
        import sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1], experiment_name="tests")
        print(tracker.start_run("theirs"), flush=True)
        tracker.log_param("lr", 0.1)
        sys.stdin.read()
        tracker.log_metric("own", 1.0)
        """,
        uri,
    )
    theirs = process.stdout.readline().strip()
    with tracker.run("mine") as mine:
        tracker.log_metric("ours", 2.0, run_id=theirs)
        tracker.log_dict({"a": 1}, "ours.json", run_id=theirs)
        tracker.log_table({"a": [1]}, "ours/table.json", run_id=theirs)
    tracker.flush()
    # The end of this process' runs is none of the named run.
    assert tracker.get_run(theirs).status == "RUNNING"
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    run = tracker.get_run(theirs)
    assert (run.status, run.metrics, run.params) == ("FINISHED", {"ours": 2.0, "own": 1.0}, {"lr": "0.1"})
    assert tracker.load_dict(theirs, "ours.json") == {"a": 1}
    assert tracker.load_dict(theirs, "ours/table.json")["data"] == [[1]]
    assert tracker.get_run(mine.run_id).metrics == {}


def test_rows_are_appended_to_a_table_of_a_run_of_the_stock_client(tracker, client, fluent):
    pytest.importorskip("pandas")
    theirs = client.create_run(tracker.experiment_id).info.run_id
    client.log_table(theirs, {"a": [1]}, "t.json")
    for number in (2, 3):
        tracker.log_table({"a": [number]}, "t.json", run_id=theirs)
    tracker.log_table({"b": [1]}, "other.json", run_id=theirs)
    tracker.flush()
    assert list(client.load_table(tracker.experiment_id, "t.json", [theirs])["a"]) == [1, 2, 3]
    listed = json.loads(client.get_run(theirs).data.tags["mlflow.loggedArtifacts"])
    assert [entry["path"] for entry in listed] == ["t.json", "other.json"]


@pytest.mark.parametrize(
    "call", ["log_metric", "log_params", "set_tag", "log_artifact", "log_text", "log_table"]
)
def test_an_id_that_no_run_can_have_is_refused(tracker, call):
    with tracker.run() as run, pytest.raises((InvalidInputError, NotFoundError)):
        getattr(tracker, call)(*CALLS[call], run_id="no id")
    assert tracker.get_run(run.run_id).metrics == {}


@pytest.mark.strict
def test_a_param_of_a_named_run_does_not_change(tracker):
    with tracker.run("outer") as outer, tracker.run("inner", nested=True):
        outer.log_param("lr", 0.1)
        with pytest.raises(InvalidInputError, match=r"0\.1.*0\.2"):
            tracker.log_param("lr", 0.2, run_id=outer.run_id)
        tracker.log_param("lr", 0.2)
