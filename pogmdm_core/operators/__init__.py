"""Linear operators of the measurement: Fourier sampling, coils, and the bilinear model of both."""
