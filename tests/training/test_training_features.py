"""Features equal those of scipy, and the delays of real recordings those of the map."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.signal
import torch

from heimdall_tracking.errors import ConfigurationError, InvalidInputError
from heimdall_tracking.training import delays, levels, mel_spectrogram


def decibels(iq, sample_rate, *, n_fft=2048, hop=512, bands=128):
    """The documented spectrogram before its normalisation, computed by scipy."""
    _, _, spectrum = scipy.signal.stft(np.abs(iq), nperseg=n_fft, noverlap=n_fft - hop)
    top = 2595 * np.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)
    frequencies = np.arange(n_fft // 2 + 1) * sample_rate / n_fft
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    weights = np.maximum(0, np.minimum(rising, falling))
    return 10 * np.log10(np.einsum("bk,ckt->cbt", weights, np.abs(spectrum) ** 2) + 1e-9)


def middle(values, frames=32):
    if values.shape[-1] < frames:
        missing = frames - values.shape[-1]
        return np.pad(values, ((0, 0), (0, 0), (missing // 2, missing - missing // 2)), mode="reflect")
    start = (values.shape[-1] - frames) // 2
    return values[..., start : start + frames]


def noise(samples, channels=3, seed=0):
    return np.random.default_rng(seed).normal(size=(channels, samples, 2)).view(complex)[..., 0]


@pytest.mark.parametrize("samples", [2048, 5000, 15_872, 192_000])
@pytest.mark.parametrize("sample_rate", [12_000, 192_000])
def test_decibels_are_those_of_scipy(samples, sample_rate):
    iq = noise(samples)
    ours = mel_spectrogram(iq, sample_rate, normalisation="none").numpy()
    assert ours.shape == (3, 128, 32)
    assert np.abs(ours - middle(decibels(iq, sample_rate))).max() < 1e-4


def test_decibels_are_those_of_scipy_at_other_settings_too():
    iq = noise(9_000, channels=2)
    settings = {"n_fft": 512, "hop": 200, "bands": 40}
    ours = mel_spectrogram(iq, 48_000, frames=20, normalisation="none", **settings).numpy()
    assert np.abs(ours - middle(decibels(iq, 48_000, **settings), 20)).max() < 1e-4


def test_each_channel_is_normalised_as_documented():
    iq = noise(192_000)
    values = decibels(iq, 192_000)
    flat = values.reshape(3, -1)
    expected = (values - flat.mean(1)[:, None, None]) / flat.std(1)[:, None, None]
    assert np.abs(mel_spectrogram(iq, 192_000).numpy() - middle(expected)).max() < 1e-5


def test_joint_normalisation_keeps_the_level_and_each_channel_alone_does_not():
    iq = noise(15_872) * np.array([[1], [10], [100]])
    alone = mel_spectrogram(iq, 12_000, skip_empty_bands=True).mean((1, 2))
    joint = mel_spectrogram(iq, 12_000, normalisation="joint").mean((1, 2))
    assert alone.abs().max() < 0.1
    assert joint[2] - joint[1] > 0.5
    assert joint[1] - joint[0] > 0.5


def test_empty_bands_are_left_out_on_request():
    iq = torch.from_numpy(noise(192_000)).to(torch.complex64)
    plain, skipped = (mel_spectrogram(iq, 192_000, skip_empty_bands=it) for it in (False, True))
    empty = [band for band in range(128) if not skipped[:, band].any()]
    assert empty == [0, 1, 4, 9]
    assert plain[:, empty].max() < -4
    assert skipped.std() > 1.5 * plain[:, 10:].std()


def test_wrong_input_is_refused():
    with pytest.raises(InvalidInputError, match="at least 2048 samples long, not 2047 samples"):
        mel_spectrogram(noise(2047), 12_000)
    with pytest.raises(InvalidInputError, match=r"\(channels, samples\), not \[4096\]"):
        mel_spectrogram(noise(4096)[0], 12_000)
    with pytest.raises(ConfigurationError, match="sample_rate=-1"):
        mel_spectrogram(noise(4096), -1)
    with pytest.raises(ConfigurationError, match="unknown field `n_mels`"):
        mel_spectrogram(noise(4096), 12_000, **{"n_mels": 3})
    with pytest.raises(ConfigurationError, match=r"weighting.*scot.*expected `none` or `phat`"):
        delays(noise(4096), 12_000, max_delay_s=0.1, weighting="scot")


def test_levels_are_those_of_a_tone_in_noise():
    tone = np.exp(0.3j * np.arange(60_000)) * np.array([[1], [10]])
    (level, ratio), (strong, better) = levels(tone + noise(60_000, channels=2) * np.sqrt(0.5) * 0.1)
    assert level == pytest.approx(0.04, abs=0.05)
    assert ratio == pytest.approx(20, abs=0.2)
    assert strong == pytest.approx(20, abs=0.05)
    assert better == pytest.approx(40, abs=0.2)


MEASURED_MS = {
    "dcf77_20171127": [1.2307, -0.3051, -1.5324],
    "dcf77_20200813": [-0.4364, 0.0835, 0.5196],
}
EXPECTED_MS = {
    "dcf77_20171127": [1.2000, -0.3463, -1.5463],
    "dcf77_20200813": [-0.4253, 0.0783, 0.5036],
}


def aligned(folder, name, session, sample_rate):
    """The receivers of a session on one time base, by linear interpolation."""
    begin, end = session["common_gps_time_of_week_s"]
    times = begin + np.arange(int((end - begin) * sample_rate)) / sample_rate
    for receiver in session["receivers"]:
        iq = np.load(folder / f"{name}_{receiver['id']}_iq.npy").astype(float) @ [1, 1j]
        at = (times - receiver["fitted_gps_time_of_week_of_sample_0_s"]) * receiver["fitted_sample_rate_hz"]
        yield np.interp(at, np.arange(len(iq)), iq)


@pytest.mark.parametrize("name", MEASURED_MS)
def test_the_delays_of_real_recordings_are_those_of_the_map(name, kiwisdr):
    session = json.loads((kiwisdr / "meta.json").read_text())["sessions"][name]
    iq = np.stack([*aligned(kiwisdr, name, session, 12_000)])
    found = delays(iq, 12_000, max_delay_s=0.01, band_hz=(50, 700))
    assert [pair[:2] for pair in found] == [(0, 1), (0, 2), (1, 2)]
    milliseconds = np.array([pair[2] for pair in found]) * 1000
    # A sample is 0.083 ms.
    assert np.abs(milliseconds - MEASURED_MS[name]).max() < 0.03
    assert np.abs(milliseconds - EXPECTED_MS[name]).max() < 0.06
    assert milliseconds[1] - milliseconds[0] == pytest.approx(milliseconds[2], abs=0.03)
