"""Names of the posterior samplers, and where each is: ``module:class``, a subclass of `estimate.samplers.base.Sampler`.

A further sampler is one file and one line here; a program that uses this package may add its own at run time:
``SAMPLERS["mine"] = "my_package.mine:Mine"``.
"""

from __future__ import annotations

_HERE = "pogmdm_core.estimate.samplers"

SAMPLERS: dict[str, str] = {
    "renoise": f"{_HERE}.renoise:Renoise",
    "langevin": f"{_HERE}.langevin:Langevin",
    "paper": f"{_HERE}.paper:Paper",
}
