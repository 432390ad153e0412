"""Posterior samplers: what advances a sample by one noise level, and the loop around it."""
