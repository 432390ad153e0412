"""Cost of one training step, with tables and with direct evaluation of every mixture component.

    python benchmarks/training_step.py [--repeats 7]

The direct step is the same `Trainer.advance` (same patches, FFTs, loss, Adam), with `training_score` of the experts
replaced by the exact sum over all components at every pixel, differentiated by autograd. Both kinds of steps
alternate in one run; the medians and their ratio are printed. One thread.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from gadget.training.train import _read_settings
from pogmdm_core.prior.grid_mixture import GridMixtureExperts
from pogmdm_core.prior.scale_mixture import ScaleMixtureExperts
from pogmdm_core.prior.training import Trainer, TrainingImage, TrainingSettings

Score = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def direct_grid(experts: GridMixtureExperts) -> Score:
    def score(u: torch.Tensor, levels: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
        s = (experts.sigma_0**2 + (widths.detach() * levels[:, None]) ** 2)[..., None]
        mu, weights = experts.means(), experts.weights()
        distance = (u[..., None] - mu) ** 2
        kernel = torch.exp((distance.detach().amin(-1, keepdim=True) - distance) / (2 * s[..., None]))
        mass = torch.einsum("bkpl,kl->bkp", kernel, weights) + 1e-30
        moment = torch.einsum("bkpl,kl->bkp", kernel, weights * mu)
        return experts.exponents(levels)[..., None] * (moment / mass - u) / s

    return score


def direct_scales(experts: ScaleMixtureExperts) -> Score:
    def score(u: torch.Tensor, levels: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
        variance = widths[:, None] ** 2 * (experts.scales() ** 2 + levels[:, None, None] ** 2)
        log_rho = experts.log_weights(levels) - 0.5 * torch.log(variance)
        rho = torch.softmax(log_rho[:, :, None] - u[..., None] ** 2 / (2 * variance[:, :, None]), dim=-1)
        precision = (rho / variance[:, :, None]).sum(-1)
        power = widths**2 * experts._relative_exponents(levels)
        return -power[..., None] * u * precision

    return score


def images() -> list[TrainingImage]:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(8, 1, 12, 12, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(192, 192), mode="bicubic")[:, 0]
    return [TrainingImage(image.clamp(0, 1), f"s{i}", "blobs") for i, image in enumerate(smooth)]


def compare(settings: TrainingSettings, repeats: int) -> tuple[float, float, float]:
    """Median seconds with tables, median seconds direct, relative difference of the scores."""
    trainer = Trainer(images(), settings)
    experts = trainer._prior.experts
    with_tables = experts.training_score
    direct = direct_grid(experts) if isinstance(experts, GridMixtureExperts) else direct_scales(experts)
    u = 0.1 * torch.randn(settings.batch, experts.n_filters, 500)
    levels = torch.logspace(-2, -0.5, settings.batch)
    with torch.no_grad():
        a, b = with_tables(u, levels, experts.width), direct(u, levels, experts.width)
    times: dict[str, list[float]] = {"tables": [], "direct": []}
    trainer.advance()
    for turn in range(repeats):
        for name, score in (("tables", with_tables), ("direct", direct)):
            if name == "direct" and turn % 2:
                continue  # half as many of the slow ones
            experts.training_score = score  # type: ignore[method-assign]
            start = time.perf_counter()
            trainer.advance()
            times[name].append(time.perf_counter() - start)
    difference = float((a - b).abs().max() / b.abs().max())
    return float(np.median(times["tables"])), float(np.median(times["direct"])), difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(__file__).resolve().parents[1] / "training"
    lines = ["| settings | components | step with tables | direct step | ratio | scores differ by |"]
    lines.append("|---|---|---|---|---|---|")
    for file in sorted(folder.glob("*.yaml")):
        settings = _read_settings(file).training
        fast, slow, difference = compare(settings, args.repeats)
        n = getattr(settings.experts, "n_means", None) or settings.experts.n_scales
        cost = f"{1e3 * fast:.0f} ms | {1e3 * slow:.0f} ms | 1/{slow / fast:.0f}"
        lines.append(f"| {file.stem} | {n} | {cost} | {difference:.1e} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
