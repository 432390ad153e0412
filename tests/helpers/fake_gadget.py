"""Stand-ins for the gadget, launched by `python -m gadgetron PORT fake_gadget TARGET`."""

import logging
import os
import struct

import ismrmrd
import numpy as np


def _image(series, shape=(1, 1, 4, 6), value=1.0, image_type=1):
    return ismrmrd.Image.from_array(
        np.full(shape, value, dtype=np.float32),
        transpose=False,
        image_type=image_type,
        image_index=1,
        image_series_index=series,
        field_of_view=(1.0, 1.0, 1.0),
    )


def _error(connection, text):
    data = text.encode()
    connection.socket.write(struct.pack("<HQ", 8, len(data)) + data)


def count(connection):
    """Series 1 holds the number of readouts, series 2 of waveforms, series 3 the configured values."""
    n_readouts = n_waveforms = 0
    for item in connection:
        n_readouts += isinstance(item, ismrmrd.Acquisition)
        n_waveforms += isinstance(item, ismrmrd.Waveform)
    values = {p.get("name"): p.get("value") for p in connection.config.iter("property")}
    connection.send(_image(1, value=n_readouts))
    connection.send(_image(2, value=n_waveforms))
    connection.send(_image(3, value=float(values.get("sampler.n_samples", -1))))
    connection.send(_image(3, value=float(values.get("preset", "default") == "fast")))


def chatty(connection):
    """Sends many images before it reads anything: a peer that sends first and reads later deadlocks."""
    for _ in range(40):
        connection.send(_image(7, shape=(1, 1, 512, 512)))
    count(connection)


def progress(connection):
    logging.info("hello from the gadget")
    for done in range(0, 21):
        logging.info("POGMDM_PROGRESS sampling frame %d 20", done)
    count(connection)


def silent(connection):
    list(connection)


def coded_error(connection):
    connection.send(_image(1))
    list(connection)
    _error(connection, "E214 matrixSize.x is 0, expected 8..1024.")
    raise RuntimeError("E214 again, in the traceback")


def crash(connection):
    list(connection)
    raise ValueError("ZZPATIENTZZ")


def die(connection):
    connection.send(_image(1))
    os._exit(3)


def mixed(connection):
    list(connection)
    connection.send(_image(1))
    connection.send(_image(1, shape=(1, 1, 5, 6)))
