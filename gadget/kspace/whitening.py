"""Whitening with a noise scan, in the units of the data.

The noise scan has its own dwell time, and its receiver filter may roll off at the edges of the
band. With covariance C of its samples, the data's noise covariance is
``C * dwell_noise / (dwell_data * bandwidth)``, where bandwidth is the header's
relativeReceiverNoiseBandwidth (mean over in-band noise power; 0.793 on Siemens systems). Where
the header does not say, no roll-off is assumed: simulated noise has none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gadget import logs

# relativeReceiverNoiseBandwidth that NoiseAdjustGadget takes where the header does not say
_NOISE_ADJUST_BANDWIDTH = 0.793
_ENOUGH_SAMPLES, _MOST_SHADING = 64, 0.02


@dataclass(frozen=True)
class Whitener:
    """Makes noise white without changing the scale of the data.

    Attributes
    ----------
    matrix
        `(live, coil)` complex64; noise of the scan comes out uncorrelated, with the standard
        deviation `scale` per complex sample in every channel.
    scale
        Geometric mean over live channels of the noise scan's standard deviation per complex sample.
    dwell_us
        Dwell time of the noise scan; 0 where the header does not say.
    bandwidth
        See the module.
    n_dead
        Channels dropped because they hold no noise.
    upstream
        Whether the data come whitened and only the noise level is told.
    is_short
        Whether so few noise samples shade the image: its intensities are off by 2 % and more from place to place.
    """

    matrix: np.ndarray
    scale: float
    dwell_us: float
    bandwidth: float
    n_dead: int
    upstream: bool = False
    is_short: bool = False

    @classmethod
    def from_samples(cls, noise: list[np.ndarray], dwell_us: float, bandwidth: float | None) -> Whitener:
        """Estimate it from noise readouts, complex `(coil, n)` each, all with the same coils.

        Raises
        ------
        DataError
            E310 every channel is dead.
        """
        import torch

        from pogmdm_core.measurement.noise import noise_covariance, whitening_matrix

        samples = np.concatenate(noise, axis=1)
        estimate = noise_covariance(torch.from_numpy(samples))
        covariance = estimate.matrix
        matrix, live = whitening_matrix(covariance)
        variance = torch.diagonal(covariance).real[live]
        scale = float(torch.exp(0.5 * torch.log(variance).mean()))
        whitener = cls(
            matrix=(scale * matrix).numpy().astype(np.complex64),
            scale=scale,
            dwell_us=dwell_us,
            bandwidth=bandwidth if bandwidth is not None else 1.0,
            n_dead=len(samples) - len(live),
            is_short=samples.shape[1] < _ENOUGH_SAMPLES or estimate.shading > _MOST_SHADING,
        )
        logs.get().info(
            "noise scan: %d samples, %d channels (%d dead), condition number %.1f, bandwidth %.3f%s",
            samples.shape[1],
            len(samples),
            whitener.n_dead,
            float(torch.linalg.cond(covariance[live][:, live])),
            whitener.bandwidth,
            "" if bandwidth is not None else " (not in the header)",
        )
        return whitener

    @classmethod
    def behind_noise_adjust(cls, n_channels: int, bandwidth: float | None) -> Whitener:
        """What is left to do behind Gadgetron's NoiseAdjustGadget: nothing, at a known noise level.

        It scales noise to variance 2 per complex sample, divided by the share of the noise scan's power that a
        roll-off of the receiver filter takes. Where the header names that share, it is so. Where it does not, that
        gadget assumes 0.793 of data for which this module assumes 1, as for simulated noise: 2 * 0.793 is left.
        """
        variance = 2.0 if bandwidth is not None else 2.0 * _NOISE_ADJUST_BANDWIDTH
        return cls(np.eye(n_channels, dtype=np.complex64), float(np.sqrt(variance)), 0.0, 1.0, 0, True)

    def apply(self, data: np.ndarray) -> np.ndarray:
        """Whiten `(readout, coil, sample)` to `(readout, live, sample)`, complex64."""
        return np.matmul(self.matrix, data)

    @property
    def gain(self) -> float:
        """What noise that is equal and independent in all channels is multiplied with (root mean square)."""
        return float(np.sqrt((np.abs(self.matrix) ** 2).sum(axis=1).mean()))

    def noise_std(self, dwell_us: float) -> float:
        """Noise per real or imaginary part in whitened data of a given dwell time."""
        known = dwell_us > 0 and self.dwell_us > 0
        ratio = self.dwell_us / dwell_us if known else 1.0
        return self.scale * float(np.sqrt(0.5 * ratio / self.bandwidth))
