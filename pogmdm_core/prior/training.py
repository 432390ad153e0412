"""Training of a prior by denoising score matching, fast enough for two CPU cores.

Loss: E || level * score(x + level n, level) + n ||^2 over patches, noise levels log-uniform over
the range the sampler uses (corrected eq. 4 divided by level^2). Constraints of the paper hold by
construction (mixture weights: softmax) or by projection after each step (h, P, gamma).

Source: Vincent 2011, doi:10.1162/NECO_a_00142; Nagler, Zach & Pock, arXiv 2501.08662, section 2.1.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field

from pogmdm_core.errors import DataError
from pogmdm_core.prior.config import BankConfig, ExpertConfig, MultiscaleConfig, ScaleMixtureConfig, build_prior
from pogmdm_core.prior.model import ProductPrior
from pogmdm_core.settings import Section

VALIDATION_LEVELS = (0.02, 0.05, 0.1, 0.2, 0.4)
_VALIDATION_CROP = 128
_TRIES = 20


@dataclass(frozen=True)
class TrainingImage:
    """A magnitude image for training.

    Attributes
    ----------
    image
        float32 `(y, x)`, scaled so that its 99.9 % quantile is 1.
    subject, anatomy
        For splitting by subject and balancing.
    quantum
        Step between grey values in units of `image` (0 for continuous data); training adds
        uniform noise of this width so that the model does not learn the quantisation.
    """

    image: torch.Tensor
    subject: str
    anatomy: str
    quantum: float = 0.0


class LearningRates(Section):
    """Adam step sizes per kind of parameter."""

    mixture: float = Field(0.03, gt=0, description="logits of the mixture weights")
    scalars: float = Field(0.01, gt=0, description="gains and exponents")
    filters: float = Field(1e-3, gt=0, description="filter taps")


class TrainingSettings(Section):
    """How a prior is trained; recorded in the weights file."""

    name: str = Field("default", description="name of the model")
    bank: BankConfig = Field(default_factory=MultiscaleConfig)
    experts: ExpertConfig = Field(default_factory=ScaleMixtureConfig)
    level_low: float = Field(0.005, gt=0, description="lowest noise level")
    level_high: float = Field(1.0, gt=0, description="highest noise level")
    steps: int = Field(1500, ge=1, description="optimiser steps")
    batch: int = Field(4, ge=1, description="patches per step, each at a level of its own")
    patch: int = Field(96, ge=32, description="side of a patch, pixels")
    margin: int = Field(12, ge=0, description="border left out of the loss (periodic wrap-around)")
    ema: float = Field(0.995, ge=0, lt=1, description="decay of the averaged parameters")
    learning_rates: LearningRates = Field(default_factory=LearningRates)
    warm_up: int = Field(30, ge=0, description="steps of linear warm-up before the cosine decay")
    validation_share: float = Field(0.08, gt=0, lt=0.5, description="share of the subjects held out")
    validate_every: int = Field(250, ge=1, description="steps between validations")
    seed: int = Field(0, ge=0, description="everything random derives from it")


@dataclass(frozen=True)
class Validation:
    """Denoising PSNR (dB, peak 1) on held-out subjects, per noise level, mean over crops."""

    step: int
    loss: float
    psnr: dict[float, float]
    psnr_noisy: dict[float, float]

    def __str__(self) -> str:
        table = "  ".join(f"{level:g}: {value:.2f}" for level, value in self.psnr.items())
        return f"step {self.step}  loss {self.loss:.4f}  PSNR  {table}"


def split_by_subject(
    images: Sequence[TrainingImage], share: float, seed: int
) -> tuple[list[TrainingImage], list[TrainingImage]]:
    """Split into training and validation images; no subject is in both, every anatomy gives some.

    Anatomies with a single subject stay in training.
    """
    subjects: dict[str, list[str]] = defaultdict(list)
    for item in images:
        if item.subject not in subjects[item.anatomy]:
            subjects[item.anatomy].append(item.subject)
    generator = torch.Generator().manual_seed(seed)
    held_out: set[str] = set()
    for anatomy in sorted(subjects):
        names = sorted(subjects[anatomy])
        n_held = 0 if len(names) < 2 else max(1, round(share * len(names)))
        order = torch.randperm(len(names), generator=generator)[:n_held]
        held_out.update(names[i] for i in order.tolist())
    train = [i for i in images if i.subject not in held_out]
    return train, [i for i in images if i.subject in held_out]


class PatchSource:
    """Draws patches balanced by anatomy, then subject, then image; flipped and rotated by 90 degrees."""

    def __init__(self, images: Sequence[TrainingImage], patch: int, generator: torch.Generator) -> None:
        self._tree: dict[str, dict[str, list[TrainingImage]]] = defaultdict(lambda: defaultdict(list))
        for item in images:
            if min(item.image.shape) >= patch:
                self._tree[item.anatomy][item.subject].append(item)
        if not self._tree:
            raise DataError(340, f"no training image is at least {patch} x {patch} pixels.")
        self._patch, self._generator = patch, generator

    def draw(self) -> torch.Tensor:
        """One patch `(patch, patch)`, float32; mostly empty ones are redrawn (up to 20 times)."""
        patch = torch.empty(0)
        for _ in range(_TRIES):
            patch = self._cut()
            if (patch > 0.03).float().mean() > 0.25:
                break
        return patch

    def _pick(self, options: Sequence[str]) -> str:
        return options[self._integer(len(options))]

    def _integer(self, high: int) -> int:
        return int(torch.randint(high, (1,), generator=self._generator))

    def _cut(self) -> torch.Tensor:
        subjects = self._tree[self._pick(sorted(self._tree))]
        items = subjects[self._pick(sorted(subjects))]
        item = items[self._integer(len(items))]
        height, width = item.image.shape
        y, x = self._integer(height - self._patch + 1), self._integer(width - self._patch + 1)
        patch = item.image[y : y + self._patch, x : x + self._patch]
        if item.quantum:
            patch = patch + item.quantum * (torch.rand(patch.shape, generator=self._generator) - 0.5)
        patch = torch.rot90(patch, self._integer(4))
        return patch.flip(0) if self._integer(2) else patch


def validation_crops(images: Sequence[TrainingImage], limit: int = 24) -> torch.Tensor:
    """Central crops of up to `limit` held-out images, spread over subjects, `(n, 128, 128)`."""
    by_subject: dict[str, list[TrainingImage]] = defaultdict(list)
    for item in images:
        if min(item.image.shape) >= _VALIDATION_CROP:
            by_subject[item.subject].append(item)
    if not by_subject:
        raise DataError(341, f"no held-out image is at least {_VALIDATION_CROP} pixels wide.")
    crops: list[torch.Tensor] = []
    subjects = [by_subject[name] for name in sorted(by_subject)]
    for turn in range(limit):
        items = subjects[turn % len(subjects)]
        item = items[(len(items) // 2 + turn // len(subjects)) % len(items)]
        y, x = ((n - _VALIDATION_CROP) // 2 for n in item.image.shape)
        crops.append(item.image[y : y + _VALIDATION_CROP, x : x + _VALIDATION_CROP])
    return torch.stack(crops)


def validate(prior: ProductPrior, crops: torch.Tensor, step: int = 0, loss: float = math.nan) -> Validation:
    """Denoise held-out crops at fixed noise realisations and report PSNR per level."""
    psnr, noisy_psnr = {}, {}
    for i, level in enumerate(VALIDATION_LEVELS):
        generator = torch.Generator().manual_seed(1000 + i)
        noisy = crops + level * torch.randn(crops.shape, generator=generator)
        clean = prior.denoise(noisy, level)
        psnr[level] = _mean_psnr(clean, crops)
        noisy_psnr[level] = _mean_psnr(noisy, crops)
    return Validation(step, loss, psnr, noisy_psnr)


def _mean_psnr(image: torch.Tensor, truth: torch.Tensor) -> float:
    mse = ((image - truth) ** 2).mean(dim=(-2, -1))
    return float((-10 * torch.log10(mse)).mean())


class Trainer:
    """A training in progress: it can be stepped, validated, stored and taken up again.

    Parameters
    ----------
    images
        Training images; part of the subjects is held out for validation.
    settings
        See `TrainingSettings`; the same settings and images give the same weights.
    """

    def __init__(self, images: Sequence[TrainingImage], settings: TrainingSettings) -> None:
        self.settings = settings
        self.step = 0
        self._generator = torch.Generator().manual_seed(settings.seed)
        kept, held_out = split_by_subject(images, settings.validation_share, settings.seed)
        self._source = PatchSource(kept, settings.patch, self._generator)
        self._crops = validation_crops(held_out)
        self._prior = build_prior(
            settings.bank, settings.experts, (settings.level_low, settings.level_high), settings.name
        )
        self._average = copy.deepcopy(self._prior)
        self._optimiser = _optimiser(self._prior, settings)
        self._rates = [group["lr"] for group in self._optimiser.param_groups]

    def advance(self) -> float:
        """Make one optimiser step and return its loss (1 is what doing nothing costs)."""
        settings, generator = self.settings, self._generator
        for group, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * _rate(self.step, settings)
        clean = torch.stack([self._source.draw() for _ in range(settings.batch)])
        levels = _draw_levels(settings, generator)[:, None, None]
        noise = torch.randn(clean.shape, generator=generator)
        self._prior.measure_widths()
        score = self._prior.training_score(clean + levels * noise, levels[:, 0, 0])
        inner = slice(settings.margin, settings.patch - settings.margin)
        loss = (levels * score + noise)[:, inner, inner].square().mean()
        self._optimiser.zero_grad()
        torch.autograd.backward(loss)
        self._optimiser.step()
        self._prior.bank.project()
        self.step += 1
        _move_average(self._average, self._prior, min(settings.ema, self.step / (self.step + 10)))
        return float(loss.detach())

    def finished(self) -> ProductPrior:
        """Averaged (EMA) parameters, back on the constraints, widths measured."""
        prior = copy.deepcopy(self._average)
        prior.bank.project()
        prior.measure_widths()
        for parameter in prior.parameters():
            parameter.requires_grad_(False)
        return prior

    def validate(self, loss: float = math.nan) -> Validation:
        """Denoise the held-out crops with the averaged parameters."""
        return validate(self.finished(), self._crops, self.step, loss)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything a later `restore` needs to go on exactly here, as tensors."""
        tensors = {"step": torch.tensor(self.step), "generator": self._generator.get_state()}
        for name, model in (("prior", self._prior), ("average", self._average)):
            tensors.update({f"{name}.{key}": value.clone() for key, value in model.state_dict().items()})
        for index, memory in self._optimiser.state_dict()["state"].items():
            tensors.update({f"adam.{index}.{key}": value.clone() for key, value in memory.items()})
        return tensors

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take up a training stored by `state`; raises DataError E344 when it does not fit."""
        try:
            for name, model in (("prior", self._prior), ("average", self._average)):
                model.load_state_dict({key: tensors[f"{name}.{key}"] for key in model.state_dict()})
            memory: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
            for name in tensors:
                if name.startswith("adam."):
                    _, index, key = name.split(".")
                    memory[int(index)][key] = tensors[name]
            adam = self._optimiser.state_dict()
            adam["state"] = dict(memory)
            self._optimiser.load_state_dict(adam)
            self._generator.set_state(tensors["generator"])
            self.step = int(tensors["step"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise DataError(344, "the checkpoint belongs to a training with other settings.") from error


def train(
    images: Sequence[TrainingImage],
    settings: TrainingSettings,
    report: Callable[[Validation], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ProductPrior, list[Validation]]:
    """Train a prior from start to end.

    Parameters
    ----------
    images, settings
        See `Trainer`.
    report, progress
        Called with each validation, and with (step, steps) after every step.

    Returns
    -------
        The averaged prior and all validations, the last one after the last step.
    """
    trainer = Trainer(images, settings)
    history = list(run(trainer, report, progress))
    return trainer.finished(), history


def run(
    trainer: Trainer,
    report: Callable[[Validation], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Validation]:
    """Advance a training to its last step, yielding each validation (see `train`)."""
    settings = trainer.settings
    while trainer.step < settings.steps:
        loss = trainer.advance()
        if progress is not None:
            progress(trainer.step, settings.steps)
        if trainer.step % settings.validate_every == 0 or trainer.step == settings.steps:
            validation = trainer.validate(loss)
            if report is not None:
                report(validation)
            yield validation


def _optimiser(prior: ProductPrior, settings: TrainingSettings) -> torch.optim.Adam:
    rates = settings.learning_rates
    bank, experts = prior.bank, prior.experts
    groups = [
        {"params": experts.mixture_parameters(), "lr": rates.mixture},
        {"params": [bank.gain, *experts.scalar_parameters()], "lr": rates.scalars},
        {"params": bank.filter_parameters(), "lr": rates.filters},
    ]
    return torch.optim.Adam(groups, betas=(0.9, 0.99))


def _rate(step: int, settings: TrainingSettings) -> float:
    if step < settings.warm_up:
        return (step + 1) / settings.warm_up
    done = (step - settings.warm_up) / max(1, settings.steps - settings.warm_up)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _draw_levels(settings: TrainingSettings, generator: torch.Generator) -> torch.Tensor:
    """Log-uniform levels, one per stratum, so that every step sees low and high noise."""
    position = (torch.arange(settings.batch) + torch.rand(settings.batch, generator=generator)) / settings.batch
    return settings.level_low * (settings.level_high / settings.level_low) ** position


@torch.no_grad()
def _move_average(average: ProductPrior, prior: ProductPrior, decay: float) -> None:
    for kept, new in zip(average.parameters(), prior.parameters(), strict=True):
        kept.lerp_(new, 1 - decay)
