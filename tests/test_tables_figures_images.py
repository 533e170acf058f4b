"""Texts, dicts, figures, images and tables: the files that the stock client writes for the same call."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest

from heimdall_tracking import InvalidInputError, RunStateError, WrongTypeError
from support.helpers import contents

FORBIDDEN_FILES = ["", "/a.txt", "../a.txt", "a//b.txt", "a\\b.txt"]


@pytest.fixture
def both(tracker, client, tmp_path):
    """The artifacts that a call leaves in a run of ours and in one of the stock client, and their tags."""

    last: list[str] = []

    def both(call: str, *arguments, **keywords) -> list[tuple[dict[str, bytes], dict[str, str]]]:
        ours = tracker.active_run_id or tracker.start_run()
        getattr(tracker, call)(*arguments, **keywords)
        tracker.flush()
        theirs = last[0] if last else client.create_run(tracker.experiment_id).info.run_id
        last[:] = [theirs]
        getattr(client, call)(theirs, *arguments, **keywords)
        answers = []
        for run_id in (ours, theirs):
            folder = tmp_path / run_id
            folder.mkdir(exist_ok=True)
            client.download_artifacts(run_id, "", str(folder))
            tags = {
                k: v for k, v in client.get_run(run_id).data.tags.items() if k.startswith("mlflow.logged")
            }
            answers.append((contents(folder), tags))
        return answers

    return both


@pytest.mark.parametrize("text", ["", "a\nb\n", "zwölf 漢字 😀\0"])
def test_a_text_arrives_as_the_stock_client_writes_it(both, text):
    ours, theirs = both("log_text", text, "notes/first.txt")
    assert ours == theirs


@pytest.mark.parametrize("file", ["a.json", "a.yaml", "b/a.yml", "a", "a.txt"])
def test_a_dict_arrives_as_the_stock_client_writes_it(both, file):
    ours, theirs = both("log_dict", {"b": [1, 2.5, None, True], "a": {"ü": "漢"}}, file)
    assert ours == theirs


def test_what_json_has_no_form_for_is_written_as_text(both, tmp_path):
    ours, theirs = both("log_dict", {"path": tmp_path}, "a.json")
    assert ours == theirs


@pytest.mark.parametrize("ending", ["png", "svg", "jpg"])
def test_a_figure_arrives_as_the_stock_client_writes_it(both, ending):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    figure.subplots().plot([1, 2], [3, 1])
    ours, theirs = both(
        "log_figure",
        figure,
        f"plots/loss.{ending}",
        save_kwargs={"dpi": 50, "metadata": {"Date": None}} if ending == "svg" else {"dpi": 50},
    )
    if ending == "svg":
        # Identifiers in it are random.
        assert len(ours[0]["plots/loss.svg"]) == len(theirs[0]["plots/loss.svg"])
    else:
        assert ours == theirs


@pytest.mark.parametrize("ending", ["html"])
def test_a_figure_of_plotly_arrives_as_the_stock_client_writes_it(both, ending):
    graph_objects = pytest.importorskip("plotly.graph_objects")
    figure = graph_objects.Figure(graph_objects.Scatter(x=[0, 1], y=[2, 3]))
    (ours, _), (theirs, _) = both("log_figure", figure, f"loss.{ending}")
    without_ids = [re.sub(rb"[0-9a-f]{8}-[0-9a-f-]{27}", b"", it[f"loss.{ending}"]) for it in (ours, theirs)]
    assert without_ids[0] == without_ids[1]


@pytest.mark.strict
@pytest.mark.parametrize("file", ["loss.nope", "loss"])
def test_a_figure_needs_an_ending_that_is_a_format(tracker, file):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    tracker.start_run()
    with pytest.raises(InvalidInputError, match="ending"):
        tracker.log_figure(figure, file)


def random_image(shape: tuple[int, ...], kind: str) -> np.ndarray:
    values = np.random.default_rng(1).random(shape)
    return {
        "bool": values > 0.5,
        "uint8": (values * 255).astype(np.uint8),
        "int64": (values * 255).astype(np.int64),
        "float32": values.astype(np.float32),
        "wide": values * 7 - 2,
    }[kind]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["bool", "uint8", "int64", "float32", "wide"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)], ids=str)
def test_an_array_becomes_the_file_that_the_stock_client_makes_of_it(both, kind, shape):
    ours, theirs = both("log_image", random_image(shape, kind), "a.png")
    assert ours == theirs


def test_an_image_of_pillow_becomes_the_file_that_the_stock_client_makes_of_it(both):
    pillow = pytest.importorskip("PIL.Image")
    ours, theirs = both("log_image", pillow.new("RGB", (30, 20), "red"), "a.jpg")
    assert ours == theirs


def test_an_image_of_a_series_is_named_so_that_the_stock_ui_finds_it(both):
    image = random_image((300, 700, 3), "uint8")
    answers = both("log_image", image, key="val/dogs", step=3, timestamp=1234)
    uuid = re.compile("[0-9a-f]{8}-[0-9a-f-]{27}")
    named = [{uuid.sub("", path): content for path, content in files.items()} for files, _ in answers]
    assert named[0] == named[1]
    assert sorted(named[0])[1].startswith("images/val~dogs+step+3+timestamp+1234+")
    assert answers[0][1] == answers[1][1] == {"mlflow.loggedImages": "True"}
    # One picture and its small copy belong together.
    assert len({uuid.search(path).group() for path in answers[0][0]}) == 1


def test_a_tensor_with_its_channels_first_is_an_image(tracker, client, tmp_path):
    torch = pytest.importorskip("torch")
    pillow = pytest.importorskip("PIL.Image")
    array = random_image((5, 7, 3), "uint8")
    run_id = tracker.start_run()
    tracker.log_image(torch.from_numpy(array).permute(2, 0, 1), "a.png")
    tracker.flush()
    file = client.download_artifacts(run_id, "a.png", str(tmp_path))
    assert np.array_equal(np.asarray(pillow.open(file)), array)


@pytest.mark.strict
@pytest.mark.parametrize(
    ("image", "error"),
    [
        (np.full((2, 2), 256), InvalidInputError),
        (np.full((2, 2), -1), InvalidInputError),
        (np.zeros((2, 2, 2)), InvalidInputError),
        (np.zeros(4), InvalidInputError),
        (np.zeros((0, 2)), InvalidInputError),
        (np.array([["a"]]), WrongTypeError),
        ([[1, 2]], WrongTypeError),
        ("file.png", WrongTypeError),
    ],
    ids=str,
)
def test_what_is_no_image_is_refused_and_nothing_is_logged(tracker, client, image, error):
    run_id = tracker.start_run()
    for where in ({"artifact_file": "a.png"}, {"key": "a"}):
        with pytest.raises(error):
            tracker.log_image(image, **where)
    tracker.flush()
    assert client.list_artifacts(run_id) == []
    assert "mlflow.loggedImages" not in client.get_run(run_id).data.tags


@pytest.mark.strict
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"artifact_file": "a.png", "key": "b"},
        {"artifact_file": "a.png", "step": 1},
        {"artifact_file": "a.nope"},
        {"artifact_file": "../a.png"},
        {"key": "a?b"},
        {"key": ""},
    ],
    ids=str,
)
def test_an_image_that_could_not_be_found_again_is_refused(tracker, arguments):
    tracker.start_run()
    with pytest.raises(InvalidInputError):
        tracker.log_image(np.zeros((2, 2)), **arguments)


@pytest.mark.parametrize("file", ["a.json", "b/a.json", "a.parquet"])
def test_a_table_and_what_is_appended_to_it_arrive_as_by_the_stock_client(both, file):
    pandas = pytest.importorskip("pandas")
    if file.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    first = {"question": ["a", "b"], "score": [0.1, 1 / 3], "n": [1, 2]}
    times = pandas.DataFrame({"question": ["c"], "score": [2.0], "when": [pandas.Timestamp("2026-01-02")]})
    for data in (first, times, {"question": "one", "score": 1.0}):
        (ours, our_tags), (theirs, their_tags) = both("log_table", data, file)
        if file.endswith(".json"):
            assert ours == theirs
        else:
            tables = [pandas.read_parquet(io.BytesIO(it[file])) for it in (ours, theirs)]
            pandas.testing.assert_frame_equal(*tables)
        assert our_tags == their_tags


def test_a_second_table_is_listed_beside_the_first(both):
    both("log_table", {"a": [1]}, "first.json")
    (_, ours), (_, theirs) = both("log_table", {"a": [2]}, "second.json")
    assert ours == theirs


def test_a_table_of_a_resumed_run_goes_on(tracker, client, fluent):
    with tracker.run() as run:
        tracker.log_table({"a": [1]}, "t.json")
    with tracker.run(run_id=run.run_id):
        tracker.log_table({"a": [2]}, "t.json")
        tracker.log_table({"a": [3]}, "other.json")
    tracker.flush()
    assert list(client.load_table(tracker.experiment_id, "t.json", [run.run_id])["a"]) == [1, 2]
    assert '"t.json"' in client.get_run(run.run_id).data.tags["mlflow.loggedArtifacts"]


def test_a_table_of_a_resumed_run_in_s3_goes_on_and_is_left_alone_while_it_cannot_be_read(
    s3_tracker, bucket, proxy, caplog
):
    tracker = s3_tracker(bucket, s3_endpoint_url=proxy.url)
    with tracker.run() as run:
        tracker.log_table({"a": [1]}, "t.json")
    # Another process goes on with the run.
    tracker = s3_tracker(bucket, s3_endpoint_url=proxy.url)
    with tracker.run(run_id=run.run_id):
        proxy.strike("refuse", status=403, code="AccessDenied")
        tracker.log_table({"a": [2]}, "t.json")
        assert tracker.status().unrecorded == 1
        proxy.heal()
        tracker.log_table({"a": [3]}, "t.json")
        tracker.log_table({"a": [4]}, "t.json")
    assert tracker.load_dict(run.run_id, "t.json")["data"] == [[1], [3], [4]]
    told = [record.message for record in caplog.records if "was not recorded" in record.message]
    assert len(told) == 1


def test_images_in_a_table_are_files_that_the_stock_ui_finds(both):
    pillow = pytest.importorskip("PIL.Image")
    table = {"name": ["a", "b"], "image": [pillow.new("L", (3, 2)), pillow.new("L", (2, 3))]}
    import pandas

    answers = both("log_table", pandas.DataFrame(table), "runs/t.json")
    uuid = re.compile("[0-9a-f]{8}-[0-9a-f-]{27}")
    names = [sorted(uuid.sub("", path) for path in files) for files, _ in answers]
    assert names[0] == names[1]
    tables = [uuid.sub("", files["runs/t.json"].decode()) for files, _ in answers]
    assert tables[0] == tables[1]


@pytest.mark.strict
@pytest.mark.parametrize("file", ["a.csv", "a", "a:b.json", "a[0].json", "../a.json"])
def test_a_table_in_another_file_is_refused(tracker, file):
    tracker.start_run()
    with pytest.raises(InvalidInputError):
        tracker.log_table({"a": [1]}, file)


@pytest.mark.strict
def test_what_is_no_table_is_refused(tracker):
    tracker.start_run()
    with pytest.raises(WrongTypeError, match="list"):
        tracker.log_table([1, 2], "a.json")


@pytest.mark.strict
@pytest.mark.parametrize("file", FORBIDDEN_FILES)
@pytest.mark.parametrize(("call", "content"), [("log_text", "x"), ("log_dict", {})])
def test_a_file_that_could_lead_out_of_the_run_is_refused(tracker, call, content, file):
    tracker.start_run()
    with pytest.raises(InvalidInputError):
        getattr(tracker, call)(content, file)


@pytest.mark.strict
def test_half_a_character_is_refused_by_the_name_of_its_file(tracker):
    tracker.start_run()
    with pytest.raises(InvalidInputError, match=r"a\.txt"):
        tracker.log_text("\ud800", "a.txt")


@pytest.mark.parametrize(
    ("call", "content"),
    [("log_text", "x"), ("log_dict", {}), ("log_table", {}), ("log_image", np.zeros((2, 2)))],
)
def test_logging_a_file_without_a_run_names_the_call_that_is_missing(tracker, call, content):
    with pytest.raises(RunStateError, match=f"start_run.*{call}"):
        getattr(tracker, call)(content, "a.json")


@pytest.mark.strict
def test_what_is_no_figure_is_refused(tracker):
    tracker.start_run()
    with pytest.raises(WrongTypeError, match="str"):
        tracker.log_figure("figure", "a.png")
