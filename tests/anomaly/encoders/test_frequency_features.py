"""Main bin, energy concentration and spectral entropy on known spectra (METHODS S47)."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.encoders.handmade.frequency_features import (
    energy_concentration,
    frequency_features,
    power_spectrum,
    spectral_entropy,
)

ROWS = 64


def tones(cycles: np.ndarray, phase: float = 0.3) -> np.ndarray:
    """One window per number of cycles, ``(B, ROWS, 1)``."""
    return np.sin(2 * np.pi * cycles[:, None] * np.arange(ROWS) / ROWS + phase)[..., None]


def test_s47_a_tone_is_found_within_a_bin_wherever_it_lies():
    cycles = np.arange(1.0, ROWS / 2 + 0.01, 0.1)
    for phase in (0.3, 1.1, 2.0):
        away = np.abs(frequency_features(tones(cycles, phase))[:, 0, 0] - cycles)
        assert away.max() < 1
        # Beside the ends of the spectrum it is the nearest bin; at the ends a tone meets its own mirror image.
        assert away[(cycles > 2) & (cycles < ROWS / 2 - 2)].max() <= 0.55


def test_s47_a_tone_keeps_its_bin_under_noise():
    rng = np.random.default_rng(0)
    noisy = tones(np.full(200, 9.0)) + 0.5 * rng.normal(size=(200, ROWS, 1))
    assert (frequency_features(noisy)[:, 0, 0] == 9).mean() > 0.99


def test_s47_a_tone_on_a_bin_holds_two_thirds_of_the_energy_and_little_entropy():
    main, share, entropy = frequency_features(tones(np.array([9.0])))[0, 0]
    assert main == 9
    # A Hann taper spreads a tone over three bins with amplitudes 1/4, 1/2, 1/4.
    assert share == pytest.approx(2 / 3, abs=1e-6)
    shares = np.array([1, 4, 1]) / 6
    assert entropy == pytest.approx(-(shares * np.log(shares)).sum() / np.log(ROWS / 2), abs=1e-6)


def test_s47_the_mean_spectrum_of_white_noise_has_an_entropy_near_one():
    noise = np.random.default_rng(1).normal(size=(4000, ROWS))
    mean_spectrum = power_spectrum(noise.T).mean(axis=1)
    assert spectral_entropy(mean_spectrum) > 0.998
    single = frequency_features(noise[..., None])[:, 0, 2]
    # The energies of a single periodogram are exponential: their entropy falls short of log F by 1 − Euler's constant.
    assert single.mean() == pytest.approx(1 - (1 - np.euler_gamma) / np.log(ROWS / 2), abs=0.02)


def test_s47_a_constant_is_left_out_whatever_its_size():
    wave = tones(np.array([3.0, 7.4]))
    np.testing.assert_allclose(frequency_features(wave + 500), frequency_features(wave), atol=1e-6)


def test_s47_the_spectrum_is_the_one_of_a_plain_sum():
    series = np.random.default_rng(2).normal(size=(9, 2))
    at = np.arange(9)
    tapered = series * (0.5 - 0.5 * np.cos(2 * np.pi * at / 9))[:, None]
    expected = [np.abs((np.exp(-2j * np.pi * k * at / 9)[:, None] * tapered).sum(axis=0)) ** 2 for k in range(1, 5)]
    np.testing.assert_allclose(power_spectrum(series), expected, atol=1e-12)


@pytest.mark.parametrize("rows", [8, 9])
def test_s47_the_bins_and_the_mean_share_out_all_energy(rows: int):
    series = np.random.default_rng(3).normal(size=rows)
    tapered = series * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(rows) / rows))
    whole = rows * (tapered**2).sum()
    assert 2 * power_spectrum(series).sum() + tapered.sum() ** 2 == pytest.approx(whole)


def test_s47_entropy_and_concentration_have_their_closed_forms():
    power = np.array([[1.0, 0.0, 0.0], [1.0, 5.0, 0.0], [1.0, 0.0, 0.0], [1.0, 5.0, 0.0]])
    np.testing.assert_allclose(spectral_entropy(power), [1.0, 0.5, 0.0])
    np.testing.assert_allclose(energy_concentration(power), [0.25, 0.5, 0.0])


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_s47_flat_and_very_short_windows_give_zeros_or_their_only_bin(rows: int):
    windows = np.stack((np.full(rows, 0.1), np.arange(rows) * 1.0), axis=1)[None]
    flat, ramp = frequency_features(windows)[0]
    assert flat.tolist() == [0, 0, 0]
    assert ramp.tolist() == ([0, 0, 0] if rows == 1 else [1, 1, 0])


def test_s47_rounding_of_a_flat_tag_is_no_tone():
    rounding = 1 + np.float32(1e-7) * (np.arange(ROWS, dtype=np.float32) % 2)
    assert frequency_features(rounding[None, :, None]).ravel().tolist() == [0, 0, 0]
