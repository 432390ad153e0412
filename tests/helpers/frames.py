"""A scan as the gadget prepares it, and the images it makes of it: the middle of the chain, without a socket."""

from __future__ import annotations

import ismrmrd
import numpy as np

from gadget.images.emit import Emitter
from gadget.kspace.noise_scan import NoiseScan
from gadget.kspace.prepare import prepare
from gadget.scan.buffer import AcquisitionBuffer
from gadget.scan.header import read_geometry
from gadget.settings.load import load
from helpers.fake_core import load_prior, reconstruct
from helpers.mrd_factory import Scan


def frames_of(header, acquisitions):
    """Geometry, buffer, and the frames it makes."""
    geometry = read_geometry(header)
    buffer = AcquisitionBuffer(geometry)
    frames = [frame for acq in acquisitions for frame in buffer.add(acq)] + buffer.flush()
    buffer.failed.raise_first(0)
    return geometry, buffer, frames


def prepared_frames(header, acquisitions, **settings):
    """All frames, prepared."""
    geometry, buffer, frames = frames_of(header, acquisitions)
    config = load(properties=settings)
    noise_scan = NoiseScan(config.noise.whiten, geometry.noise_bandwidth)
    return [prepare(frame, noise_scan.whitener(frame, buffer.noise), config) for frame in frames]


def prepared(header, acquisitions, **settings):
    """The first frame, prepared."""
    return prepared_frames(header, acquisitions, **settings)[0]


def prepared_of(scan, acquisitions=None, **settings):
    """The first frame of a simulated scan, prepared."""
    return prepared(scan.header(), acquisitions or scan.acquisitions(), **settings)


def with_channels(acq, numbers, numbered=None):
    """The readout with only some of its channels, numbered as they were, or otherwise."""
    head = acq.getHead()
    head.active_channels, head.available_channels = len(numbers), len(numbers)
    head.channel_mask[0] = sum(1 << number for number in numbered or numbers)
    return ismrmrd.Acquisition(head, data=np.ascontiguousarray(acq.data[list(numbers)]))


def emitted(scan=None, result_changes=None, **settings):
    """A scan prepared, the fake result, the emitter and its images."""
    made = prepared_of(scan or Scan())
    config = load(properties={"sampler.n_samples": "3", **settings})
    result = reconstruct(made.frame, None, config)
    for name, value in (result_changes or {}).items():
        object.__setattr__(result, name, value)
    emitter = Emitter(config, load_prior(), read_geometry((scan or Scan()).header()))
    return made, result, emitter, emitter.images(result, made)
