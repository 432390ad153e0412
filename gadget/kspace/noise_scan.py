"""From a scan's noise readouts to the whitener of its frames."""

from __future__ import annotations

import ismrmrd
import numpy as np

from gadget import logs
from gadget.errors import DataError
from gadget.kspace.whitening import Whitener
from gadget.scan.frames import AcquiredFrame


class NoiseScan:
    """Makes the whitener of each frame, anew only when noise readouts or channels are others.

    Parameters
    ----------
    mode
        The setting ``noise.whiten``.
    bandwidth
        relativeReceiverNoiseBandwidth of the header, or None.
    """

    def __init__(self, mode: str, bandwidth: float | None) -> None:
        self._mode, self._bandwidth = mode, bandwidth
        self._made_of: tuple[object, ...] = ()
        self._whitener: Whitener | None = None

    def whitener(self, acquired: AcquiredFrame, noise: list[ismrmrd.Acquisition]) -> Whitener | None:
        """Whitener for the channels of a frame from the noise readouts so far; see `make_whitener`."""
        n_channels, channels = acquired.data.shape[1], channels_of(acquired.heads[0])
        made_of = (id(noise), len(noise), n_channels, channels)
        if made_of != self._made_of:
            self._whitener = make_whitener(noise, n_channels, self._mode, self._bandwidth, channels)
            self._made_of = made_of
        return self._whitener


def channels_of(head: ismrmrd.AcquisitionHeader) -> tuple[int, ...] | None:
    """Numbers of a readout's channels in the order of its data, as coil labels count; None where it does not tell."""
    numbers = tuple(
        64 * word + bit for word, mask in enumerate(head.channel_mask) for bit in range(64) if mask >> bit & 1
    )
    return numbers if len(numbers) == head.active_channels else None


def _match_channels(acq: ismrmrd.Acquisition, n_channels: int, channels: tuple[int, ...] | None) -> np.ndarray | None:
    """Noise samples `(coil, n)` of the data's channels, or None where a channel is missing."""
    own = channels_of(acq.getHead())
    if channels is None or own is None or own == channels:
        return acq.data if acq.data.shape[0] == n_channels else None
    row = {number: i for i, number in enumerate(own)}
    if not set(channels) <= row.keys():
        return None
    return acq.data[[row[number] for number in channels]]


def make_whitener(
    noise: list[ismrmrd.Acquisition],
    n_channels: int,
    mode: str,
    bandwidth: float | None,
    channels: tuple[int, ...] | None = None,
) -> Whitener | None:
    """Whitener from the noise readouts, or None where there is none to be had or wanted.

    Parameters
    ----------
    noise
        Noise readouts so far.
    n_channels
        Channels of the data.
    mode
        The setting ``noise.whiten``.
    bandwidth
        relativeReceiverNoiseBandwidth of the header, or None.
    channels
        Numbers of the data's channels (see `channels_of`), by which those of a noise scan with other channels are
        matched; None where senders do not tell.

    Raises
    ------
    DataError
        E310 ``on`` without usable noise readouts, or every channel dead.
    """
    if mode == "off":
        return None
    matched = [samples for acq in noise if (samples := _match_channels(acq, n_channels, channels)) is not None]
    usable = [samples for samples in matched if np.isfinite(samples).all()]
    if len(usable) < len(matched):
        logs.get().warning("%d noise readouts hold NaN or infinite samples: not used", len(matched) - len(usable))
    if sum(samples.shape[1] for samples in usable) >= 2:
        if mode == "upstream":
            logs.get().warning("noise.whiten=upstream, but noise readouts arrive, so nobody used them: used here")
        return Whitener.from_samples(usable, float(noise[0].sample_time_us), bandwidth)
    if mode == "upstream":
        return Whitener.behind_noise_adjust(n_channels, bandwidth)
    lack = f"none of the {len(noise)} noise readouts has finite samples of the data's {n_channels} channels"
    if mode == "on":
        raise DataError(310, f"noise.whiten=on, but {lack}.", "Send a noise scan, or set noise.whiten=auto.")
    if noise:
        logs.get().warning("%s: not whitened", lack)
    return None
