"""The gadget: the whole data flow of a scan, from the first message to the last image.

Nothing heavy is imported at module level: Gadgetron reports no failure that happens before the
target runs, so a broken installation has to fail inside `pogmdm_recon` to be seen.
"""

from __future__ import annotations

import contextlib
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from gadget import logs
from gadget.core import resident_prior, resolve_core
from gadget.errors import coded
from gadget.stream.cancel import Cancelled, cancel_on_signals
from gadget.stream.link import Link, RawMessage

if TYPE_CHECKING:
    from gadget.kspace.prepare import PreparedFrame
    from gadget.scan.buffer import AcquisitionBuffer
    from gadget.scan.frames import AcquiredFrame, FrameKey
    from gadget.scan.header import Header
    from gadget.settings.schema import GadgetSettings
    from gadget.stream.link import Message
    from pogmdm_core import ReconResult

T = TypeVar("T")


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

    def start() -> tuple[GadgetSettings, Header]:
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


def run_scan(link: Link, start: Callable[[], tuple[GadgetSettings, Header]]) -> None:
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


def reconstruct_scan(link: Link, settings: GadgetSettings, header: Header) -> None:
    """Geometry, then frame by frame: prepare, reconstruct, send."""
    from gadget.compute import compute
    from gadget.images.emit import Emitter
    from gadget.images.frame_sender import FrameSender
    from gadget.kspace.field_of_view import FieldOfView
    from gadget.kspace.noise_scan import NoiseScan
    from gadget.kspace.prepare import prepare
    from gadget.scan.dump import dumped
    from gadget.scan.header import read_geometry
    from gadget.scan.sliding import buffer_for

    log = logs.configure(settings.log)
    limits = settings.limits
    link.configure(limits.max_message_bytes, limits.idle_timeout_s, settings.output.waveforms == "pass")
    geometry = read_geometry(header, limits.max_matrix)
    log.info("scan: %s; preset %s", geometry.summary(), settings.preset)

    buffer = buffer_for(geometry, settings)
    messages = link.ahead(buffer.budget)  # the scanner goes on while torch is imported
    core = resolve_core()
    prior = resident_prior(core, settings.prior)
    emitter = Emitter(settings, prior, geometry)
    noise_scan = NoiseScan(settings.noise.whiten, geometry.noise_bandwidth)

    def prepared_frame(acquired: AcquiredFrame, settings: GadgetSettings) -> PreparedFrame:
        return prepare(acquired, noise_scan.whitener(acquired, buffer.noise), settings)

    def compute_frame(
        prepared: PreparedFrame, settings: GadgetSettings, early: Callable[[ReconResult], None] | None = None
    ) -> ReconResult:
        progress = logs.progress_lines(str(prepared.key), link.report)
        return compute(core, prepared.frame, prior, settings, prepared.key, progress, link.gone, prepared.start, early)

    field_of_view = FieldOfView(settings, prepared_frame, compute_frame)
    n_whole = 0
    with contextlib.closing(dumped(messages, settings.dump, header)) as items:
        for acquired in frames(link, buffer, items):
            key = str(acquired.key)
            link.watch(key)
            with buffer.failed.tolerated(key):
                prepared = prepared_frame(acquired, settings)
                fitted = or_none(partial(field_of_view.fitted, acquired, prepared), prepared.key, settings)
                del acquired  # its samples are in the prepared frame
                prepared = fitted or prepared
                sender = FrameSender(emitter, prepared, link.send)
                result = None
                if fitted is not None:
                    result = reconstruct_frame(fitted, settings, partial(compute_frame, early=sender.early))
                if result is None:
                    sender.fallback(core.zero_filled(prepared.frame))
                else:
                    sender.rest(result)
                n_whole += 1
    buffer.failed.raise_first(n_whole)


def frames(link: Link, buffer: AcquisitionBuffer, items: Iterable[Message]) -> Iterator[AcquiredFrame]:
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
            is_buffered = isinstance(item, tuple)
            made = deque(frames_of(item, buffer.geometry, buffer.failed) if is_buffered else buffer.add(item))
            del item
            n_frames += len(made)
            yield from handed_on(made)
    except TransportError as error:
        if error.code != 401:
            raise
        logs.get().warning("%s; frames that have all their lines are reconstructed", error)
        yield from handed_on(deque(buffer.complete()))
        raise
    made = deque(buffer.flush())
    n_frames += len(made)
    yield from handed_on(made)
    counts = buffer.counts
    logs.get().info(
        "scan ended: %d frame(s); readouts: %s", n_frames, ", ".join(f"{n} {kind.value}" for kind, n in counts.items())
    )
    if n_frames or n_passed or buffer.failed or set(counts) == {Kind.NOISE}:
        return
    # a client that gets no image must not take that for success
    upstream = (
        "A gadget before this one may have ended the scan: NoiseAdjustGadget does where the header has no patientID or "
        "measurementID, as de-identified scans have not. See Gadgetron's log, or use pogmdm_standalone.xml."
    )
    flags = (
        f"{counts[Kind.SKIP]} carry flags of other uses (navigator, phase correction, dummy, surface coil correction, "
        "...): clear those in the converter if they are the scan. siemens_to_ismrmrd sets the last of them on imaging "
        "readouts whose channels want a factor."
    )
    hint = (flags if counts[Kind.SKIP] else "Check the sender and its acquisition flags.") if counts else upstream
    raise TransportError(405, f"no acquisitions: the scan ended with no imaging readouts among {counts.total()}.", hint)


def handed_on(made: deque[AcquiredFrame]) -> Iterator[AcquiredFrame]:
    """Frames one by one, none of which is kept here: together they are as large as the scan."""
    while made:
        yield made.popleft()


def reconstruct_frame(
    prepared: PreparedFrame,
    settings: GadgetSettings,
    compute_frame: Callable[[PreparedFrame, GadgetSettings], ReconResult],
) -> ReconResult | None:
    """Reconstruct, and log how it went; None where it failed and the settings ask for a fallback."""
    log, key, frame = logs.get(), prepared.key, prepared.frame
    whitened = "whitened" if prepared.whitened else "not whitened"
    log.info("%s: %d channels, %dx%d, R=%.1f, %s", key, frame.n_coils, *frame.shape, frame.acceleration, whitened)
    result = or_none(partial(compute_frame, prepared, settings), key, settings)
    if result is not None:
        log.info(
            "%s: %s, %d samples, residual %.2f, %.1f s",
            key,
            result.status.value,
            result.n_samples,
            result.data_residual,
            sum(result.seconds.values()),
        )
    return result


def or_none(step: Callable[[], T], key: FrameKey, settings: GadgetSettings) -> T | None:
    """Result of a step; None where it failed and the settings ask for a fallback image then."""
    from gadget.errors import ConfigError, PogmdmError, TransportError

    try:
        return step()
    except (PogmdmError, RuntimeError, MemoryError) as error:  # torch's own are RuntimeErrors
        # a typo, or a client that is gone, is no failed computation
        if settings.on_failure != "fallback" or isinstance(error, (ConfigError, TransportError)):
            raise
        logs.get().error("%s: %s; sending the fallback image", key, coded(error))
        return None
