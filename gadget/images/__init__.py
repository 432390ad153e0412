"""Results in, ISMRMRD images out: series, headers, Meta attributes."""
