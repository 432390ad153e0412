"""The pixel-wise standard deviation: its size from held-out k-space and samples, and so is its pattern."""
