"""Frames in, k-space out: whitened samples, where they were taken, and the noise they carry."""
