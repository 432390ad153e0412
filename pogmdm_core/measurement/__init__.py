"""What the scanner measures of an image: Fourier sampling, coils, noise; and simulated measurements."""
