"""The recordings of a training: found in folders, and divided by session and by site."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._native import EARTH_RADIUS_M, RecordingDataset
from .errors import ConfigurationError, DatasetError, DatasetNotFoundError
from .tracking import logger

PARTS = ("train", "val", "test")
ENDING = "_iq.npy"
# Metadata that says which recordings belong together.
TOGETHER = ("session_id", "site")


class Session(NamedTuple):
    """A recording.

    Args:
        folder: Its folder.
        dataset: The recordings of that folder.
        row: Its number there.
        name: Its name.
        position: Latitude and longitude of the transmitter in degrees.
        together: What it shares with other recordings that must stay in one part.
        part: `train`, `val` or `test` where its folder says that, else None.
    """

    folder: Path
    dataset: RecordingDataset
    row: int
    name: str
    position: tuple[float, float]
    together: tuple[str, ...]
    part: str | None


def find(approved: Any, data: str | None, settings: dict[str, Any]) -> list[Session]:
    """Return the approved recordings.

    Args:
        approved: Names of sessions in the folder `data`, and folders; None is all sessions of `data`. A
            folder has sessions, or folders train, val and test of sessions.
        data: The folder of sessions that are given by name, or None.
        settings: Those of `RecordingDataset`.

    Raises:
        DatasetNotFoundError: A folder has no recordings, or a session is not there.
        DatasetError: A label breaks its format, or some sessions are divided and others are not.
    """
    if approved is None:
        approved = [] if data is None else [data]
    listed: list[str | Path] = [approved] if isinstance(approved, (str, Path)) else [*approved]
    if not listed:
        raise DatasetNotFoundError("there are no approved sessions: give their names or their folder")
    known = {} if data is None or listed == [data] else _by_name(_in_folder(Path(data), settings))
    found: list[Session] = []
    for it in listed:
        if str(it) in known:
            found += known[str(it)]
        elif Path(it).is_dir():
            found += _in_folder(Path(it), settings)
        else:
            where = f"the folder {data}" if data is not None else "data, as there is no such setting"
            raise DatasetNotFoundError(f"the approved session {str(it)!r} is neither a folder nor in {where}")
    # A session that is approved twice counts once.
    found = [*{(session.folder, session.name): session for session in found}.values()]
    if len({session.part is None for session in found}) > 1:
        raise DatasetError(
            "some of the approved sessions are in folders train, val and test, and others are not: "
            "all must be divided already, or none"
        )
    return found


def _by_name(sessions: Iterable[Session]) -> dict[str, list[Session]]:
    names: dict[str, list[Session]] = {}
    for session in sessions:
        names.setdefault(session.name, []).append(session)
    return names


def _in_folder(folder: Path, settings: dict[str, Any]) -> list[Session]:
    folder = folder.resolve()
    if not folder.is_dir():
        raise DatasetNotFoundError(f"{folder} does not exist: it must be a folder of recordings")
    if any(folder.glob(f"*{ENDING}")):
        return _of_dataset(folder, RecordingDataset(folder.parent, folder.name, **settings), None)
    parts = [part for part in PARTS if (folder / part).is_dir()]
    if not parts:
        raise DatasetNotFoundError(
            f"{folder} has no recordings: it must have files <session>{ENDING} and <session>_label.npy, or "
            "folders train, val and test of them"
        )
    return [
        session
        for part in parts
        for session in _of_dataset(folder / part, RecordingDataset(folder, part, **settings), part)
    ]


def _of_dataset(folder: Path, dataset: RecordingDataset, part: str | None) -> list[Session]:
    return [
        Session(folder, dataset, row, name, _position(folder, name), _together(folder, name), part)
        for row, name in enumerate(dataset.sessions)
    ]


def _position(folder: Path, name: str) -> tuple[float, float]:
    file = folder / f"{name}_label.npy"
    try:
        label = np.load(file, allow_pickle=False)
        latitude, longitude = (float(value) for value in label.reshape(2))
    except (OSError, ValueError, TypeError) as error:
        raise DatasetError(f"{file}: it must be [latitude, longitude] in degrees: {error}") from error
    if not (abs(latitude) <= 90 and abs(longitude) <= 180):
        raise DatasetError(f"{file}: it must be [latitude, longitude] in degrees, not {label.tolist()}")
    return latitude, longitude


def _together(folder: Path, name: str) -> tuple[str, ...]:
    file = folder / f"{name}_meta.json"
    try:
        metadata = json.loads(file.read_bytes())
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file}: it must be an object of JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise DatasetError(f"{file}: it must be an object of JSON, not {type(metadata).__name__}")
    return tuple(f"{key}={metadata[key]}" for key in TOGETHER if metadata.get(key) is not None)


def divide(
    sessions: Sequence[Session], val_split: float, test_split: float, radius_m: float, seed: int
) -> dict[str, list[Session]]:
    """Return the recordings for training, validation and test. No site is in two of them.

    Recordings that are divided already stay as they are.

    Args:
        sessions: The recordings.
        val_split: Share that validates, 0…1 exclusive.
        test_split: Share that tests; 0 is none.
        radius_m: Recordings whose transmitters are this close are of one site.
        seed: Decides which sites validate and test.

    Raises:
        ConfigurationError: A share is out of range.
        DatasetError: There are too few sites, or a part has no recordings.
    """
    if not (0 < val_split < 1 and 0 <= test_split < 1 and val_split + test_split < 1):
        raise ConfigurationError(
            f"val_split={val_split!r} and test_split={test_split!r} are not valid: val_split must be between "
            "0 and 1, test_split from 0 on, and both together below 1"
        )
    sites = _sites(sessions, radius_m)
    if sessions[0].part is not None:
        return _given_parts(sessions, sites, test_split)
    needed = 3 if test_split else 2
    if len(sites) < needed:
        parts = "training, validation and test" if test_split else "training and validation"
        raise DatasetError(
            f"{len(sessions)} sessions at {len(sites)} sites are too few: {parts} need a site each, so at "
            f"least {needed} (sessions within site_radius_m={radius_m:g} m of each other are one site)"
        )
    order = np.random.default_rng(seed).permutation(len(sites))
    left = [sites[number] for number in order]
    test, left = _taken(left, round(test_split * len(sessions)), 1 if test_split else 0)
    val, left = _taken(left, round(val_split * len(sessions)), 1)
    rows = {"train": _joined(left), "val": _joined(val), "test": _joined(test)}
    return {part: [sessions[row] for row in rows[part]] for part in PARTS}


def _taken(sites: list[list[int]], wanted: int, least: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return sites with about the wanted number of sessions, at least so many sites, and the others."""
    taken: list[list[int]] = []
    others: list[list[int]] = []
    for site in sites:
        fits = sum(map(len, taken)) + len(site) <= wanted
        (taken if fits else others).append(site)
    while len(taken) < least:
        smallest = min(others, key=len)
        others.remove(smallest)
        taken.append(smallest)
    return taken, others


def _joined(sites: list[list[int]]) -> list[int]:
    return sorted(row for site in sites for row in site)


def _given_parts(
    sessions: Sequence[Session], sites: list[list[int]], test_split: float
) -> dict[str, list[Session]]:
    parts = {part: [session for session in sessions if session.part == part] for part in PARTS}
    for part in PARTS if test_split else PARTS[:2]:
        if not parts[part]:
            raise DatasetError(f"the folder {part} has no approved session: it must have at least one")
    if not test_split:
        parts["test"] = []
    shared = [site for site in sites if len({sessions[row].part for row in site}) > 1]
    if shared:
        names = ", ".join(f"{sessions[row].part}/{sessions[row].name}" for row in shared[0][:4])
        logger.warning(
            "%d sites are in more than one of train, val and test (%s, …): errors look smaller than they are",
            len(shared),
            names,
        )
    return parts


# Sites


def _sites(sessions: Sequence[Session], radius_m: float) -> list[list[int]]:
    """Return the rows of each site: chains of sessions that are close, or that metadata puts together."""
    parents = [*range(len(sessions))]

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = row = parents[parents[row]]
        return row

    def join(one: int, other: int) -> None:
        first, second = sorted((root(one), root(other)))
        parents[second] = first

    first_of: dict[object, int] = {}
    for row, session in enumerate(sessions):
        for key in (session.position, *session.together):
            join(first_of.setdefault(key, row), row)
    rows = [row for key, row in first_of.items() if isinstance(key, tuple)]
    points = np.array([_on_sphere(*sessions[row].position) for row in rows])
    # The side of a cube is the distance at most, so that close points are in the same or in adjacent cubes.
    cubes: dict[tuple[int, ...], list[int]] = {}
    near = max(radius_m, 1e-3)
    for number, point in enumerate(points):
        cubes.setdefault(tuple(np.floor(point / near).astype(int).tolist()), []).append(number)
    around = [(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)]
    for cube, inside in cubes.items():
        others = [n for step in around for n in cubes.get(tuple(map(sum, zip(cube, step, strict=True))), [])]
        for number in inside:
            distances = np.linalg.norm(points[others] - points[number], axis=1)
            for other in np.flatnonzero(distances <= radius_m):
                join(rows[number], rows[others[other]])
    sites: dict[int, list[int]] = {}
    for row in range(len(sessions)):
        sites.setdefault(root(row), []).append(row)
    return [*sites.values()]


def _on_sphere(latitude: float, longitude: float) -> tuple[float, float, float]:
    phi, theta = math.radians(latitude), math.radians(longitude)
    ring = EARTH_RADIUS_M * math.cos(phi)
    return ring * math.cos(theta), ring * math.sin(theta), EARTH_RADIUS_M * math.sin(phi)


def middle(sessions: Sequence[Session]) -> tuple[float, float]:
    """Return the mean latitude and longitude of some recordings, in degrees."""
    latitudes, longitudes = zip(*(session.position for session in sessions), strict=True)
    return round(float(np.mean(latitudes)), 6), round(float(np.mean(longitudes)), 6)
