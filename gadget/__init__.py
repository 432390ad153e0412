"""The gadget: ISMRMRD raw data in, image and uncertainty out, over Gadgetron's wire protocol.

``python -m gadgetron PORT gadget pogmdm_recon`` is how Gadgetron launches it. Importing this
package stays cheap on purpose: Gadgetron reports nothing when an import fails, so everything
heavy (torch takes seconds) is imported inside `pogmdm_recon`, where failures reach the client.
"""

from __future__ import annotations

import os
from typing import Any

__all__ = ["__version__", "pogmdm_recon"]

# torch's threads spin while they wait for each other. Beside other busy programs, as on a reconstruction computer, that
# costs up to ten times the time, and spinning less a tenth at most (benchmarks/busy_machine.py). libgomp reads this
# once, when torch is loaded; whoever has told it something is left alone.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"


def __getattr__(name: str) -> Any:
    """Resolve the public names on first use (PEP 562)."""
    if name == "pogmdm_recon":
        from gadget.target import pogmdm_recon

        return pogmdm_recon
    if name == "__version__":
        from pogmdm_core import __version__

        return __version__
    raise AttributeError(f"module 'gadget' has no attribute {name!r}")
