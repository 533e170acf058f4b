"""Recordings on disk become features, through a cache that workers share."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from heimdall_tracking.errors import ConfigurationError
from heimdall_tracking.training import (
    DatasetError,
    DatasetNotFoundError,
    RecordingDataset,
    mel_spectrogram,
)


def noise(seed=0, samples=4096):
    values = np.random.default_rng(seed).normal(size=(3, samples, 2)).astype(np.float32)
    return values.view(np.complex64)[..., 0]


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    for number in range(5):
        np.save(folder / f"s{number}_iq.npy", noise(number))
        np.save(folder / f"s{number}_label.npy", np.array([45.0 + number, 8.0]))
        (folder / f"s{number}_meta.json").write_text(json.dumps({"sample_rate": 12_000, "id": number}))
    return folder.parent


def test_a_recording_has_features_label_and_metadata(root):
    dataset = RecordingDataset(root, "train")
    assert len(dataset) == 5
    assert dataset.sessions == ["s0", "s1", "s2", "s3", "s4"]
    features, label, metadata = dataset[-1]
    assert features.dtype == label.dtype == torch.float32
    assert torch.equal(features, mel_spectrogram(noise(4), 12_000))
    assert label.tolist() == [49.0, 8.0]
    assert metadata == {"id": 4, "sample_rate": 12_000, "session": "s4"}
    with pytest.raises(IndexError, match="index 5 must be below 5"):
        dataset[5]
    assert len([*dataset]) == 5


@pytest.mark.parametrize("change", [np.asfortranarray, lambda iq: iq.astype(np.complex128), np.abs])
def test_other_arrays_of_the_same_samples_have_the_same_features(root, change):
    plain = RecordingDataset(root, "train")[0][0]
    np.save(root / "train" / "s0_iq.npy", change(noise(0)))
    assert torch.allclose(RecordingDataset(root, "train")[0][0], plain, atol=1e-4)


def test_one_row_of_samples_stands_for_every_channel(root):
    np.save(root / "train" / "s0_iq.npy", noise(0)[0])
    features = RecordingDataset(root, "train")[0][0]
    assert torch.equal(features[0], features[2])


@pytest.mark.parametrize("workers", [0, 2])
def test_it_serves_in_a_loader_of_torch(root, tmp_path, workers):
    dataset = RecordingDataset(root, "train", cache_dir=tmp_path / "cache")
    # Forked workers would inherit the threads of libtorch.
    context = "spawn" if workers else None
    batches = [*DataLoader(dataset, batch_size=2, num_workers=workers, multiprocessing_context=context)]
    assert [tuple(batch[0].shape) for batch in batches] == [(2, 3, 128, 32), (2, 3, 128, 32), (1, 3, 128, 32)]
    assert batches[0][2]["session"] == ["s0", "s1"]
    assert len([*(tmp_path / "cache").iterdir()]) == 5


def test_the_cache_knows_content_and_settings(root, tmp_path):
    cache = tmp_path / "cache"
    first = RecordingDataset(root, "train", cache_dir=cache)
    assert torch.equal(first[0][0], first[0][0])
    assert len([*cache.iterdir()]) == 1
    assert RecordingDataset(root, "train", cache_dir=cache, bands=64)[0][0].shape == (3, 64, 32)
    joint = RecordingDataset(root, "train", cache_dir=cache, normalisation="joint")[0][0]
    assert not torch.equal(joint, first[0][0])
    np.save(root / "train" / "s0_iq.npy", noise(9))
    assert torch.equal(first[0][0], mel_spectrogram(noise(9), 12_000))
    assert len([*cache.iterdir()]) == 4


def test_errors_name_the_file_and_what_it_must_be(root):
    train = root / "train"
    with pytest.raises(DatasetNotFoundError, match=r"data/all does not exist: it must be a folder"):
        RecordingDataset(root, "all")
    np.save(train / "s0_iq.npy", noise(0)[:2])
    with pytest.raises(DatasetError, match=r"s0_iq\.npy: its shape \[2, 4096\] must be \(3, samples\)"):
        RecordingDataset(root, "train")[0]
    np.save(train / "s0_iq.npy", np.array([{"code": "runs"}], dtype=object), allow_pickle=True)
    with pytest.raises(DatasetError, match=r"s0_iq\.npy: it has pickled objects, which are never read"):
        RecordingDataset(root, "train")[0]
    np.save(train / "s1_iq.npy", noise(1, 100))
    with pytest.raises(DatasetError, match=r"s1_iq\.npy: iq must be at least 2048 samples long"):
        RecordingDataset(root, "train")[1]
    np.save(train / "s2_label.npy", np.array([145.0, 8.0]))
    with pytest.raises(DatasetError, match=r"s2_label\.npy: it must be \[latitude, longitude\] in degrees"):
        RecordingDataset(root, "train")[2]
    (train / "s3_meta.json").write_text("[1]")
    with pytest.raises(DatasetError, match=r"s3_meta\.json: it must be an object of JSON"):
        RecordingDataset(root, "train")[3]
    (train / "s4_meta.json").unlink()
    with pytest.raises(DatasetError, match=r"s4_iq\.npy: its sample rate is unknown: s4_meta\.json must"):
        RecordingDataset(root, "train")[4]
    assert RecordingDataset(root, "train", sample_rate=48_000)[4][2]["sample_rate"] == 48_000
    (train / "s4_meta.pkl").write_bytes(pickle.dumps({}))
    with pytest.raises(DatasetError, match=r"s4_meta\.pkl: pickled metadata can run code"):
        RecordingDataset(root, "train")
    (train / "s4_meta.pkl").unlink()
    (train / "s4_label.npy").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"s4_label\.npy does not exist"):
        RecordingDataset(root, "train")


def test_wrong_settings_are_refused_at_once(root):
    with pytest.raises(ConfigurationError, match="hop=4096"):
        RecordingDataset(root, "train", hop=4096)
    with pytest.raises(ConfigurationError, match="unknown field `colour`"):
        RecordingDataset(root, "train", colour="red")
