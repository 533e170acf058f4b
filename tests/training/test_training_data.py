"""Recordings are read whole, divided by place, or refused with file, line and value."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from heimdall_tracking import HeimdallError
from heimdall_tracking.errors import ConfigurationError, InvalidInputError
from heimdall_tracking.training import (
    DatasetError,
    DatasetNotFoundError,
    RssDataset,
    RssLocalizationNet,
    baselines,
)


@pytest.fixture
def folder(recordings: Path, tmp_path: Path) -> Path:
    """A copy of the recordings that may be broken."""
    return Path(shutil.copytree(recordings, tmp_path / "recordings"))


def edit_line(path: Path, number: int, edit) -> None:
    lines = path.read_text().split("\n")
    lines[number - 1] = edit(lines[number - 1])
    path.write_text("\n".join(lines))


def test_the_parts_hold_every_row_once(dataset):
    rows = [dataset.rows(part) for part in ("train", "val", "test")]
    assert sorted(row for part in rows for row in part) == list(range(5006))
    assert len(dataset) == 5006
    assert dataset.rss("test").shape == (666, 29)
    assert dataset.positions("test").shape == (666, 2)
    assert np.abs(dataset.positions("val") - [40.76, -111.84]).max() < 0.03
    with pytest.raises(InvalidInputError, match='"train", "val" or "test", not "dev"'):
        dataset.rss("dev")


def test_no_square_of_the_map_is_on_two_sides(dataset):
    model = RssLocalizationNet(dataset.receivers)
    per_degree = 6_371_000 * np.pi / 180 * np.array([1, np.cos(np.radians(model.origin[0]))])

    def squares(part):
        metres = (dataset.positions(part) - model.origin) * per_degree
        return {tuple(square) for square in np.floor(metres / 230).astype(int)}

    assert squares("train").isdisjoint(squares("val"))


def test_the_seed_decides_which_squares_validate(recordings, dataset):
    assert RssDataset.load(recordings, seed=0).rows("val") == dataset.rows("val")
    assert RssDataset.load(recordings, seed=1).rows("val") != dataset.rows("val")


def test_the_baselines_are_those_of_the_published_table(dataset):
    found = {name: (round(median), round(mean)) for name, median, mean in baselines(dataset)}
    assert found == {
        "mean_position": (482, 537),
        "power_centroid": (255, 344),
        "nearest_neighbours": (137, 168),
    }


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="nowhere does not exist") as caught:
        RssDataset.load(tmp_path / "nowhere")
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, HeimdallError)


@pytest.mark.parametrize("name", ["single_tx.csv", "receivers.json", "splits.json"])
def test_a_file_that_is_not_there_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(DatasetNotFoundError, match=name):
        RssDataset.load(folder)


def test_a_missing_column_is_named(folder):
    edit_line(folder / "single_tx.csv", 1, lambda line: line.replace("web-nuc1-b210", "web"))
    with pytest.raises(DatasetError, match=r'single_tx\.csv, line 1: column "web-nuc1-b210"'):
        RssDataset.load(folder)


def test_a_value_that_is_no_number_is_quoted_with_its_line(folder):
    def edit(line):
        return line.rsplit(",", 1)[0] + ",west"

    edit_line(folder / "single_tx.csv", 17, edit)
    with pytest.raises(DatasetError, match=r'line 17: column "tx_y_coord" is "west"') as caught:
        RssDataset.load(folder)
    assert isinstance(caught.value, ValueError)


def test_a_short_row_is_refused_with_its_line(folder):
    edit_line(folder / "single_tx.csv", 9, lambda line: line.rsplit(",", 1)[0])
    with pytest.raises(DatasetError, match="line 9: the row has 64 columns, the header has 65"):
        RssDataset.load(folder)


def test_an_unknown_split_names_those_there_are(recordings):
    with pytest.raises(DatasetError, match='no split "grid"; it has: grid_test, indoor,'):
        RssDataset.load(recordings, test="grid")


@pytest.mark.parametrize(("setting", "value"), [("val_fraction", 1.0), ("square_m", -1.0)])
def test_a_setting_that_cannot_divide_is_named(recordings, setting, value):
    with pytest.raises(ConfigurationError, match=f"^{setting}="):
        RssDataset.load(recordings, **{setting: value})


def test_a_division_that_leaves_nothing_to_learn_from_is_refused(recordings):
    with pytest.raises(DatasetError, match="0 training"):
        RssDataset.load(recordings, val_fraction=0.9999)
