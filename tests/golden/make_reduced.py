"""Reduce the specification's shearlets.npz (1 MB) to the file beside this one (below 100 kB).

    python tests/golden/make_reduced.py <folder of the specification's golden files>

Float64 throughout. Two kernels and four spectra are thinned by strides that share no factor with the
row lengths, so that every row and every column is still sampled; h, P and xi_320 are complete.
experts.npz is a plain copy. Where the specification's folder is there, the tests read all of it.
"""

import sys
from pathlib import Path

import numpy as np

KERNELS = (1, 5)  # coarse k = -1, fine k = -2
SPECTRA = (0, 7, 12, 19)  # both cones, both scales
KERNEL_STRIDE, SPECTRUM_STRIDE = 4, 5


def main(source: Path) -> None:
    full = np.load(source / "shearlets.npz")
    kept = {name: full[name] for name in ("h", "P", "xi_320")}
    for k in KERNELS:
        kept[f"kernel_{k}"] = full[f"kernel_{k}"].ravel()[::KERNEL_STRIDE]
        kept[f"kernel_{k}_shape"] = np.array(full[f"kernel_{k}"].shape)
    kept["spectra_64x48"] = full["spectra_64x48"][list(SPECTRA)].reshape(len(SPECTRA), -1)[:, ::SPECTRUM_STRIDE]
    kept["tolerance"] = np.array(1e-10)
    kept["made_with"] = np.array(f"make_reduced.py, numpy {np.__version__}")
    np.savez_compressed(Path(__file__).with_name("shearlets.npz"), **kept)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
