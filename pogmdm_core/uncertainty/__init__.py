"""The pixel-wise standard deviation: measured on held-out k-space, patterned by folds and samples."""
