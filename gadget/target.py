"""The gadget: the whole data flow of a scan, from the first message to the last image.

Nothing heavy is imported at module level: Gadgetron reports no failure that happens before the
target runs, so a broken installation has to fail inside `pogmdm_recon` to be seen.
"""

from __future__ import annotations

import contextlib
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from gadget import logs
from gadget.errors import coded
from gadget.stream.cancel import Cancelled, cancel_on_signals
from gadget.stream.link import Link, RawMessage

if TYPE_CHECKING:
    from gadget.kspace.field_of_view import FieldOfView
    from gadget.kspace.prepare import PreparedFrame
    from gadget.scan.buffer import AcquisitionBuffer
    from gadget.scan.frames import AcquiredFrame
    from gadget.settings.schema import GadgetSettings
    from pogmdm_core import ReconResult


def pogmdm_recon(connection: Any) -> None:
    """Reconstruct one scan; Gadgetron calls this with its connection once config and header are read.

    Parameters
    ----------
    connection
        `gadgetron.external.connection.Connection`.

    Raises
    ------
    PogmdmError
        After the peer was sent the same text as ERROR (id 8): Gadgetron takes a child that merely
        stops for one that is done. Unexpected errors become E599, for their text may quote data.
    """

    def start() -> tuple[GadgetSettings, Any]:
        from gadget.settings.load import from_xml

        raw = connection.raw_bytes
        return from_xml(raw.config or b""), connection.header or raw.header

    link = Link(connection)
    try:
        with cancel_on_signals(signal.SIGTERM):
            run_scan(link, start)
    except Cancelled as request:
        from gadget.errors import TransportError

        raise TransportError(412, f"cancelled ({request}).") from None


def run_scan(link: Link, start: Callable[[], tuple[GadgetSettings, Any]]) -> None:
    """Reconstruct one scan, and tell the peer whatever goes wrong.

    Parameters
    ----------
    link
        To the peer.
    start
        Gives the settings and the header; called where its errors reach the peer.

    Raises
    ------
    PogmdmError
        After it was sent.
    """
    log = logs.configure()
    try:
        reconstruct_scan(link, *start())
    except Cancelled as request:
        log.warning("cancelled (%s)", request)
        link.lost = True  # it may have come in the middle of a message
        link.fail(f"E412 cancelled ({request}).", quiet_s=0.1, most_s=0.5)
        raise
    except Exception as error:  # noqa: BLE001 - the one place: whatever happens must reach the client
        shown = coded(error)
        log.error("%s", shown)
        # places and lines of code only: the text of an unexpected error may quote data of the patient
        log.debug("%s, where it happened:\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
        link.fail(str(shown))
        raise shown.with_traceback(None) from None


def reconstruct_scan(link: Link, settings: GadgetSettings, header: Any) -> None:
    """Geometry, then frame by frame: prepare, reconstruct, send."""
    from gadget.compute import compute
    from gadget.images.emit import Emitter
    from gadget.kspace.field_of_view import FieldOfView
    from gadget.kspace.prepare import channels_of, prepare, whitener_for
    from gadget.scan.buffer import AcquisitionBuffer
    from gadget.scan.dump import dumped
    from gadget.scan.header import read_geometry
    from gadget.scan.sliding import SlidingBuffer
    from gadget.stream.budget import ByteBudget

    log = logs.configure(settings.log)
    limits = settings.limits
    link.configure(limits.max_message_bytes, limits.idle_timeout_s, settings.output.waveforms == "pass")
    geometry = read_geometry(header, limits.max_matrix)
    log.info("scan: %s; preset %s", geometry.summary(), settings.preset)

    window, holds = settings.window, (geometry, settings.trigger, ByteBudget(limits.max_buffer_bytes))
    buffer = SlidingBuffer(*holds, window.shots, window.step) if window.shots else AcquisitionBuffer(*holds)
    messages = link.ahead(buffer.budget)  # the scanner goes on while torch is imported
    core = resolve_core()
    prior = core.load_prior(settings.prior)
    emitter = Emitter(settings, prior)
    whitener, seen = None, None

    def compute_frame(prepared: PreparedFrame, settings: GadgetSettings) -> ReconResult:
        key = prepared.acquired.key
        progress = logs.progress_lines(str(key), link.report)
        return compute(core, prepared.frame, prior, settings, key, progress, link.gone, prepared.start)

    field_of_view = FieldOfView(settings, lambda frame, given: prepare(frame, whitener, given), compute_frame)
    with contextlib.closing(dumped(messages, settings.dump, header)) as items:
        for acquired in frames(link, buffer, items):
            link.watch(str(acquired.key))
            n_channels, channels = acquired.data.shape[1], channels_of(acquired.heads[0])
            if seen != (seen := (id(buffer.noise), len(buffer.noise), n_channels, channels)):
                whitener = whitener_for(acquired, buffer.noise, settings.noise.whiten, geometry.noise_bandwidth)
            prepared = prepare(acquired, whitener, settings)
            prepared, result = reconstruct_frame(prepared, settings, field_of_view, compute_frame)
            if result is None:
                images = emitter.fallback(core.zero_filled(prepared.frame), prepared)
            else:
                images = emitter.images(result, prepared)
            for image in images:
                link.send(image)


def frames(link: Link, buffer: AcquisitionBuffer, items: Iterable[Any]) -> Iterator[AcquiredFrame]:
    """Complete frames as the stream brings its items; images that enter go straight back, as do waveforms if so set.

    When the stream ends without CLOSE, frames that have all their lines still come before the error (E401).
    """
    from gadget.errors import TransportError
    from gadget.scan.buffered import frames_of
    from gadget.scan.classify import Kind

    n_frames = n_passed = 0
    try:
        for item in items:
            if isinstance(item, RawMessage):
                link.send(item)
                n_passed += item.is_image
                continue
            # a tuple is ReconData, else an acquisition
            for frame in frames_of(item, buffer.geometry) if isinstance(item, tuple) else buffer.add(item):
                n_frames += 1
                yield frame
    except TransportError as error:
        if error.code != 401:
            raise
        logs.get().warning("%s; frames that have all their lines are reconstructed", error)
        yield from buffer.complete()
        raise
    for frame in buffer.flush():
        n_frames += 1
        yield frame
    counts = buffer.counts
    logs.get().info(
        "scan ended: %d frame(s); readouts: %s", n_frames, ", ".join(f"{n} {kind.value}" for kind, n in counts.items())
    )
    if n_frames or n_passed or set(counts) == {Kind.NOISE}:
        return
    # a client that gets no image must not take that for success
    upstream = (
        "A gadget before this one may have ended the scan: NoiseAdjustGadget does where the header has no patientID or "
        "measurementID, as de-identified scans have not. See Gadgetron's log, or use pogmdm_standalone.xml."
    )
    raise TransportError(
        405,
        f"no acquisitions: the scan ended with no imaging readouts among {counts.total()}.",
        "Check the sender and its acquisition flags." if counts else upstream,
    )


def reconstruct_frame(
    prepared: PreparedFrame,
    settings: GadgetSettings,
    field_of_view: FieldOfView,
    compute_frame: Callable[[PreparedFrame, GadgetSettings], ReconResult],
) -> tuple[PreparedFrame, ReconResult | None]:
    """The frame as it was reconstructed, and the result: None where that failed and the settings ask for a fallback."""
    from gadget.errors import ConfigError, PogmdmError, TransportError

    log, key = logs.get(), prepared.acquired.key
    try:
        prepared = field_of_view.fitted(prepared)
        frame = prepared.frame
        whitened = "whitened" if prepared.whitened else "not whitened"
        log.info("%s: %d channels, %dx%d, R=%.1f, %s", key, frame.n_coils, *frame.shape, frame.acceleration, whitened)
        result = compute_frame(prepared, settings)
    except (PogmdmError, RuntimeError, MemoryError) as error:  # torch's own are RuntimeErrors
        # a typo, or a client that is gone, is no failed computation
        if settings.on_failure != "fallback" or isinstance(error, (ConfigError, TransportError)):
            raise
        log.error("%s: %s; sending the fallback image", key, coded(error))
        return prepared, None
    log.info(
        "%s: %s, %d samples, residual %.2f, %.1f s",
        key,
        result.status.value,
        result.n_samples,
        result.data_residual,
        sum(result.seconds.values()),
    )
    return prepared, result


def resolve_core() -> Any:
    """Import the reconstruction (torch comes with it, seconds); tests put another in its place."""
    import pogmdm_core

    return pogmdm_core
