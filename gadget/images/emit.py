"""Results as ISMRMRD images: series, headers, Meta."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import ismrmrd
import numpy as np

from gadget import logs
from gadget.errors import OutputError
from gadget.images.integer_pixels import PixelScale
from gadget.images.meta import SERIES, attributes
from gadget.images.recon_space import to_recon_complex, to_recon_linear

if TYPE_CHECKING:
    import torch

    from gadget.kspace.prepare import PreparedFrame
    from gadget.scan.frames import FrameKey
    from gadget.scan.geometry import Encoding, ScanGeometry
    from gadget.settings.schema import GadgetSettings
    from pogmdm_core import Prior, ReconResult


_SERIES_STEP, _MOST_SERIES = 1000, 65535


class Emitter:
    """Makes the images of a scan, numbering them within their series.

    Parameters
    ----------
    settings
        ``output`` is used; the hash of all settings goes into the Meta.
    prior
        Its ``sha256`` goes into the Meta.
    geometry
        Encodings whose images have another matrix than those of the first get series of their own, 1000 above its.
    """

    def __init__(self, settings: GadgetSettings, prior: Prior, geometry: ScanGeometry) -> None:
        from pogmdm_core import __version__

        self.output = settings.output
        text = settings.model_dump_json(exclude={"log", "limits", "dump"})
        self._own = {
            "Version": __version__,
            "WeightsSha256": prior.sha256,
            "SettingsHash": hashlib.sha256(text.encode()).hexdigest()[:16],
            "Seed": settings.sampler.seed,
        }
        self._used: defaultdict[int, set[int]] = defaultdict(set)
        self._n_samples = settings.sampler.n_samples
        self._formats: dict[int, tuple[object, ...]] = {}
        self._scales: dict[str, tuple[PixelScale, int]] = {}
        self._warned = False
        self._matrices = [encoding.recon.matrix[:2] for encoding in geometry.encodings]

    def images(
        self, result: ReconResult, prepared: PreparedFrame, names: Collection[str] | None = None
    ) -> list[ismrmrd.Image]:
        """Images of one frame, in the order of their series numbers.

        Parameters
        ----------
        result, prepared
            The frame's.
        names
            Of ``output.maps``; None: all of them.

        Raises
        ------
        OutputError
            E602 a pixel is not finite, E604 a series would mix shapes or types.
        """
        estimate, shown = result.shown(self.output.estimate)
        magnitude = _numpy(shown)
        own = {
            "NSamples": result.n_samples,
            "NSteps": result.n_steps,
            "Estimate": estimate,
            "UncertaintyMethod": result.uncertainty_method,
            "UncertaintyScales": _listed(result.uncertainty),
            "UncertaintyIntervals": _listed(result.interval_factors) if result.std is not None else "none",
            "Channels": len(result.csm),
            "NoiseStd": f"{result.noise_std:.6g}",
            "NoiseLevel": f"{result.noise_level:.6g}",
            "PriorWeight": f"{result.prior_weight:g}",
            "DataResidual": f"{result.data_residual:.4f}",
            "ModelError": f"{result.model_error:.4f}",
            "Status": result.status.value,
            "Duration": f"{sum(result.seconds.values()):.2f}",
            "DurationByStage": _listed({stage.replace(" ", "_"): seconds for stage, seconds in result.seconds.items()}),
        }
        phase = _numpy(result.phase)
        turn = np.exp(1j * phase)
        fov, recon = prepared.fov_mm, prepared.encoding.recon

        def band_limited(values: np.ndarray) -> np.ndarray:
            return to_recon_complex(values * turn, fov, recon)

        maps: dict[str, list[np.ndarray]] = {"image": [np.abs(band_limited(magnitude))]}
        if result.mean is not None:
            maps["mean"] = [np.abs(band_limited(_numpy(result.mean)))]
        maps["phase"] = [np.angle(band_limited(magnitude))]
        if result.map is not None:
            maps["map"] = [np.abs(band_limited(_numpy(result.map)))]
        if result.std is not None:
            maps["std"] = [to_recon_linear(_numpy(result.std), fov, recon)]
        if "csm" in self.output.maps:
            csm = _numpy(result.csm)
            linear = [to_recon_linear(part, fov, recon) for part in (csm.real, csm.imag)]
            maps["csm"] = [linear[0] + 1j * linear[1]]
        if "samples" in self.output.maps and result.samples is not None:
            maps["samples"] = [np.abs(band_limited(sample)) for sample in _numpy(result.samples)]
        # of samples as many as were asked for, so that numbers do not hang on how many were made
        n_places = {name: self._n_samples if name == "samples" else 1 for name in maps}
        self._scale("image", maps["image"][0])  # the scale of all magnitudes, sent or not
        wanted = [name for name in self.output.maps if names is None or name in names]
        missing = [name for name in wanted if name not in maps]
        if missing:
            logs.get().info("%s: no series for %s, it was not computed", prepared.key, ", ".join(missing))
        return [
            self._image(name, pixels, prepared, own, result.warnings, (place, n_places[name]))
            for name, stack in maps.items()
            if name in wanted
            for place, pixels in enumerate(stack)
        ]

    def fallback(self, image: torch.Tensor, prepared: PreparedFrame) -> list[ismrmrd.Image]:
        """Send a zero-filled magnitude `(y, x)` instead, labelled FALLBACK."""
        pixels = to_recon_linear(_numpy(image), prepared.fov_mm, prepared.encoding.recon)
        return [self._image("fallback", pixels, prepared, {"Status": "fallback"}, ("FALLBACK",))]

    def _image(
        self,
        name: str,
        pixels: np.ndarray,
        prepared: PreparedFrame,
        own: dict[str, object],
        warnings: tuple[str, ...],
        place: tuple[int, int] = (0, 1),
    ) -> ismrmrd.Image:
        key, recon = prepared.key, prepared.encoding.recon
        if not np.isfinite(pixels).all():
            raise OutputError(602, f"{key}: the {name} holds NaN or infinite pixels.", "Report it.")
        series = SERIES[name]
        pixels = pixels.astype(np.complex64 if np.iscomplexobj(pixels) else np.float32)
        values = pixels.reshape((-1, 1, *pixels.shape[-2:]))  # (channel, z, y, x)
        number = self.output.series_base + series.offset + _SERIES_STEP * self._format_of(key.encoding)
        if number > _MOST_SERIES:
            raise OutputError(604, f"{key}: series {number}, there are {_MOST_SERIES}.", "Lower output.series_base.")
        scale, power = PixelScale(), 1
        if self.output.dtype == "uint16" and not np.iscomplexobj(values):
            scale, power = self._scale(name, values)
            pixels, n_clipped = scale.pixels(values)
            own = {**own, "Clipped": n_clipped}
            if n_clipped:
                warnings = (*warnings, "CLIPPED")
                logs.get().warning(
                    "%s: %d pixels of the %s are beyond the largest and were clipped", key, n_clipped, name
                )
        else:
            pixels = values
        self._one_format(number, (pixels.shape, pixels.dtype, series.image_type))
        index = self._index(number, number_of_frame(key, prepared.encoding), *place)

        reference = prepared.reference
        directions, found = _directions(reference)
        if not found:
            warnings = (*warnings, "NO_DIRECTIONS")
            if not self._warned:
                logs.get().warning("the readouts carry no directions; images are labelled with the identity")
                self._warned = True
        image = ismrmrd.Image.from_array(
            pixels,
            acquisition=reference,
            transpose=False,
            image_type=series.image_type,
            image_index=index,
            image_series_index=number,
            field_of_view=recon.fov_mm,
            **{f"{axis}_dir": vector for axis, vector in directions.items()},
        )
        image.set_flag(ismrmrd.IMAGE_LAST_IN_SLICE)
        facts = {
            **self._own,
            **own,
            "Trajectory": prepared.trajectory,
            "NoiseWhitened": "upstream" if prepared.whitened_upstream else prepared.whitened,
            "Warnings": " ".join(dict.fromkeys((*prepared.warnings, *warnings))) or "none",
        }
        axes = {"row": directions["read"], "column": directions["phase"]}
        image.meta = attributes(name, values, axes, facts, index, scale, power)
        return image

    def _format_of(self, encoding: int) -> int:
        """Number of an encoding's matrix among the different ones of the scan, in their order; 0: the first's."""
        different = list(dict.fromkeys(self._matrices))
        return different.index(self._matrices[encoding if encoding < len(self._matrices) else 0])

    def _scale(self, name: str, values: np.ndarray) -> tuple[PixelScale, int]:
        """Scale of a series, settled by its first image, and the power of two it is finer than that of the image.

        All magnitudes share one slope, but for the standard deviation, which would lose its digits.
        """
        if name not in self._scales:
            if name == "phase":
                found = PixelScale.of_phase(), 1
            elif name == "std":
                found = self._scales["image"][0].finer(values)
            elif "image" in self._scales:
                found = self._scales["image"]
            else:
                found = PixelScale.of_magnitude(values, self.output.window), 1
                self._scales["image"] = found
            self._scales[name] = found
        return self._scales[name]

    def _index(self, number: int, frame: int | None, place: int, n_places: int) -> int:
        """image_index of a series: by the frame's place in the scan, or past all others where that is not to be had."""
        used = self._used[number]
        index = 0 if frame is None else frame * n_places + place + 1
        if index in used or not index:
            index = max(used, default=0) + 1
        used.add(index)
        return min(index, 65535)

    def _one_format(self, number: int, found: tuple[object, ...]) -> None:
        """Refuse a second shape or type in a series: receivers' files cannot be read after that."""
        expected = self._formats.setdefault(number, found)
        if found != expected:
            raise OutputError(
                604,
                f"series {number} would mix images of {expected[0]} {expected[1]} and {found[0]} {found[1]}.",
                "Reconstruct encodings of different matrix in separate scans.",
            )


def number_of_frame(key: FrameKey, encoding: Encoding) -> int | None:
    """Place of a frame in its scan from 0 on, slice fastest: the same on whichever worker and whenever it was made.

    None where the header's limits do not know of the frame.
    """
    number, size = 0, 1
    for counter in ("slice", "contrast", "phase", "repetition", "set"):
        value, largest = getattr(key, counter), encoding.last.get(counter, 0)
        if value > largest:
            return None
        number, size = number + value * size, size * (largest + 1)
    return number + key.encoding * size


def _listed(values: Mapping[str, float] | Mapping[float, float]) -> str:
    """``name=value`` pairs in one line."""
    return " ".join(f"{name}={value:.4g}" for name, value in values.items()) or "none"


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _directions(head: ismrmrd.AcquisitionHeader) -> tuple[dict[str, tuple[float, ...]], bool]:
    """Read, phase and slice direction of a readout; the identity where one is missing or not finite."""
    found = {axis: tuple(getattr(head, f"{axis}_dir")) for axis in ("read", "phase", "slice")}
    norms = [float(np.linalg.norm(vector)) for vector in found.values()]
    if all(np.isfinite(norm) and norm > 0.5 for norm in norms):
        return found, True
    return {"read": (1.0, 0.0, 0.0), "phase": (0.0, 1.0, 0.0), "slice": (0.0, 0.0, 1.0)}, False
