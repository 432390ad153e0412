"""Estimates from k-space and a prior: the joint start, the MAP image, posterior samples."""
