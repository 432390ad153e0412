"""Every error code and its one meaning; ``python -m pogmdm_core.error_codes`` writes ``docs/errors.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

FAMILIES: Mapping[int, tuple[str, int]] = {
    1: ("settings and weights", 2),
    2: ("the scan's header", 3),
    3: ("acquired data, images for training", 3),
    4: ("transport", 4),
    5: ("computing", 5),
    6: ("output", 6),
}
"""Name and exit status of each family, the first digit of a code."""

CODES: Mapping[int, str] = {
    101: "a setting of that name does not exist, or no longer",
    102: "a setting is given twice",
    103: "a setting has a value that is not possible",
    104: "a preset of that name does not exist",
    105: "a settings file is not plain YAML of names and values",
    106: "a settings file is too large",
    107: "a settings file cannot be read",
    108: "a chain or configuration is missing, is not XML, or is not one of this gadget",
    109: "nothing of that name is shipped with this installation",
    110: "an argument is out of range",
    111: "a trajectory cannot be simulated",
    112: "a client names a configuration that does not exist",
    113: "a client of another machine names a file of this one",
    120: "weights of that name do not exist",
    121: "a weights file is damaged, or not the one that was shipped",
    122: "a weights file is of another model or format",
    123: "a weights file lacks parameters, or they have another shape",
    124: "a weights file holds NaN, infinite or whole numbers",
    125: "a weights file holds numbers out of range",
    126: "a package that reads such images is not installed",
    127: "the sampler would start above the noise levels that the prior was trained on",
    140: "a sampling pattern of that name does not exist",
    141: "a method of that name does not exist",
    142: "a kind of truth does not exist, or two scans have the same name",
    143: "packages that evaluate needs are not installed",
    201: "the header is missing, is not ISMRMRD XML, or lacks an element",
    202: "the header has no encoding",
    203: "a readout refers to an encoding that the header does not have",
    204: "a 3-D scan that cannot be cut into slices",
    207: "the header has a document type",
    214: "a matrix size is missing or not possible",
    215: "a field of view is missing or not possible",
    216: "the image matrix is too small",
    217: "another number of the header is not possible",
    218: "readouts of several slices at once",
    301: "an input, or an image that came back, cannot be read",
    302: "a message announces more bytes or channels than there may be",
    303: "too many lines lie outside the matrix or the encoding limits",
    304: "too few lines for limits.max_accel",
    305: "readouts or arrays have not the shape, type or range they must have",
    306: "readouts that wait for their frames exceed limits.max_buffer_bytes",
    307: "too many samples fall outside the grid",
    310: "no usable noise readouts where whitening needs them",
    320: "no positions where the trajectory needs them, or none that can be used",
    321: "columns of the trajectory that are not understood",
    322: "a unit of the trajectory that cannot be told",
    323: "too many positions that are not finite or beyond the matrix",
    330: "too many samples that are NaN or infinite",
    331: "no k-space was measured",
    332: "a noise level that is not a positive number",
    340: "no training image is as large as a patch",
    341: "no held-out training image is large enough",
    342: "training images cannot be read",
    343: "no training images",
    344: "a checkpoint of a training with other settings",
    345: "no usable checkpoint",
    350: "not a fully sampled Cartesian scan",
    401: "the stream ended between messages without CLOSE",
    402: "the stream ended inside a message",
    403: "nothing, or not all, came in time",
    404: "a message that is not understood",
    405: "the scan ended without acquisitions",
    406: "configuration, header and data came in another order",
    407: "the receiver took no data in time",
    408: "the service cannot listen there",
    409: "the receiver is gone",
    410: "the gadget did not end",
    411: "the service is busy",
    412: "cancelled",
    413: "no connection could be made",
    414: "the sender reported an error",
    500: "the other side reports an error without a code, or ended without a word",
    501: "the device does not exist",
    502: "out of memory",
    503: "the device was lost",
    510: "the sampler diverged",
    511: "time was up before the first estimate",
    512: "a worker cannot be started",
    513: "a worker died",
    520: "weights that cannot be tabulated at a noise level",
    521: "another program that evaluate compares with is missing, failed, or cannot do this",
    598: "a module is missing",
    599: "an unexpected error",
    601: "an output cannot be written",
    602: "an image holds NaN or infinite pixels",
    603: "an output exists already",
    604: "a series would mix images of different shapes or types",
    605: "the gadget sent no image",
    606: "no image series to show",
}


def as_markdown() -> Iterator[str]:
    """Lines of the page."""
    yield "# Error codes"
    yield ""
    yield "An error is one line: its code, what is wrong and where, and how to mend it. The first digit is the family,"
    yield "which decides the exit status of `pogmdm`. Made by `python -m pogmdm_core.error_codes`."
    for family, (name, status) in FAMILIES.items():
        yield ""
        yield f"## E{family}xx: {name} (exit status {status})"
        yield ""
        yield "| code | meaning |"
        yield "|---|---|"
        for code, meaning in CODES.items():
            if code // 100 == family:
                yield f"| E{code} | {meaning} |"


if __name__ == "__main__":
    sys.stdout.write("\n".join(as_markdown()) + "\n")
