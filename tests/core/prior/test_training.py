import dataclasses
import math

import pytest
import torch

from pogmdm_core.errors import DataError
from pogmdm_core.prior import training
from pogmdm_core.prior.training import (
    PatchSource,
    Trainer,
    TrainingImage,
    TrainingSettings,
    split_by_subject,
    train,
    validate,
    validation_crops,
)

PAPER = {"bank": {"kind": "shearlet"}, "experts": {"kind": "grid_mixture", "n_means": 31}}
SMALL = {
    "bank": {"kind": "multiscale", "scales": [[1, 5, 4], [2, 5, 2]]},
    "experts": {"kind": "scale_mixture", "n_scales": 8},
}
QUICK = {"batch": 3, "patch": 32, "margin": 4, "warm_up": 3, "validation_share": 0.3, "level_low": 0.02}


@pytest.fixture(autouse=True)
def small_validation(monkeypatch):
    monkeypatch.setattr(training, "_VALIDATION_CROP", 48)
    monkeypatch.setattr(training, "VALIDATION_LEVELS", (0.05, 0.2))
    plain = training.validation_crops
    monkeypatch.setattr(training, "validation_crops", lambda images: plain(images, 3))


def blocks(seed, n=64):
    """Overlapping rectangles: edges and flat regions."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.full((n, n), 0.1)
    for _ in range(12):
        y, x, h, w = torch.randint(4, n // 2, (4,), generator=generator).tolist()
        image[y : y + h, x : x + w] = float(torch.rand(1, generator=generator))
    return image


def make_images():
    """Head: four subjects of two slices; knee: two subjects; heart: a single one."""
    names = [("head", s) for s in "abcd"] + [("knee", s) for s in "ef"] + [("heart", "g")]
    return [
        TrainingImage(blocks(10 * i + j), subject, anatomy)
        for i, (anatomy, subject) in enumerate(names)
        for j in range(2)
    ]


@pytest.fixture(scope="module")
def images():
    return make_images()


def settings(parts, **values):
    return TrainingSettings.model_validate({**QUICK, **parts, **values})


@pytest.mark.parametrize("seed", range(5))
def test_no_subject_is_on_both_sides(images, seed):
    kept, held_out = split_by_subject(images, 0.3, seed)
    assert len(kept) + len(held_out) == len(images)
    assert {i.subject for i in kept}.isdisjoint(i.subject for i in held_out)
    assert {i.anatomy for i in held_out} == {"head", "knee"}  # every anatomy that can give one
    assert {i.anatomy for i in kept} == {"head", "knee", "heart"}
    assert [i.subject for i in split_by_subject(images, 0.3, seed)[1]] == [i.subject for i in held_out]


def test_a_subject_with_two_anatomies_is_on_one_side_too():
    images = [
        TrainingImage(blocks(i), s, a)
        for i, (a, s) in enumerate([("head", "a"), ("neck", "a"), ("head", "b"), ("neck", "c")])
    ]
    for seed in range(6):
        kept, held_out = split_by_subject(images, 0.3, seed)
        assert {i.subject for i in kept}.isdisjoint(i.subject for i in held_out)


def test_the_split_changes_with_the_seed(images):
    splits = {tuple(sorted({i.subject for i in split_by_subject(images, 0.3, seed)[1]})) for seed in range(8)}
    assert len(splits) > 1


def test_patches_are_balanced_by_anatomy_then_subject():
    """One heart against nine heads: both are drawn half of the time."""

    def constant(value, subject, anatomy):
        return TrainingImage(torch.full((40, 40), value), subject, anatomy)

    images = [constant(0.1 + 0.05 * i, f"h{i // 8}", "head") for i in range(9)] + [constant(0.9, "x", "heart")]
    source = PatchSource(images, 32, torch.Generator().manual_seed(0))
    values = torch.stack([source.draw()[0, 0] for _ in range(600)])
    assert float((values > 0.8).float().mean()) == pytest.approx(0.5, abs=0.07)
    # h1 has one image, h0 has eight: both subjects are drawn alike
    assert float(((values - 0.5).abs() < 0.01).float().mean()) == pytest.approx(0.25, abs=0.07)


def test_patches_are_flipped_turned_and_pieces_of_the_image():
    ramp = 0.1 + torch.arange(36.0)[:, None] / 100 + torch.arange(40.0)[None, :] / 1000
    source = PatchSource([TrainingImage(ramp, "a", "head")], 32, torch.Generator().manual_seed(0))
    corners = set()
    for _ in range(100):
        patch = source.draw()
        assert patch.shape == (32, 32) and patch.dtype == torch.float32
        low = float(patch.min())
        assert float(patch.max()) == pytest.approx(low + 0.31 + 0.031, abs=1e-5)
        y, x = divmod(int(patch.argmin()), 32)
        slope = round(1000 * float((patch[1, 0] - patch[0, 0]).abs()))
        corners.add((y, x, slope))
    assert len(corners) == 8  # four corners, two orientations


def test_quantised_images_get_noise_of_one_step():
    flat = TrainingImage(torch.full((32, 32), 0.5), "a", "head", quantum=0.1)
    patch = PatchSource([flat], 32, torch.Generator().manual_seed(0)).draw()
    assert (patch - 0.5).abs().max() <= 0.05
    assert float(patch.std()) == pytest.approx(0.1 / 12**0.5, rel=0.1)


def test_empty_patches_are_avoided_but_never_for_ever():
    image = torch.zeros(200, 200)
    image[:60, :60] = 0.7
    source = PatchSource([TrainingImage(image, "a", "head")], 32, torch.Generator().manual_seed(0))
    filled = [float((source.draw() > 0.03).float().mean()) > 0.25 for _ in range(50)]
    assert sum(filled) > 25  # a tenth of blind draws would be
    black = PatchSource([TrainingImage(torch.zeros(40, 40), "a", "head")], 32, torch.Generator().manual_seed(0))
    assert black.draw().shape == (32, 32)


def test_too_small_images_are_refused(images):
    with pytest.raises(DataError, match="E340 no training image is at least 96 x 96"):
        PatchSource(images, 96, torch.Generator())
    small = [dataclasses.replace(i, image=i.image[:40, :40]) for i in images]
    with pytest.raises(DataError, match="E341"):
        validation_crops(small)
    with pytest.raises(DataError, match="E341"):
        validation_crops([])


def test_validation_crops_are_central_and_spread(images):
    crops = validation_crops(images, limit=7)
    assert crops.shape == (7, 48, 48)
    assert torch.equal(crops[0], images[1].image[8:56, 8:56])
    assert len({float(c.sum()) for c in crops}) == 7  # seven subjects


@pytest.mark.parametrize("parts", [PAPER, SMALL], ids=["paper", "multiscale"])
def test_training_is_deterministic(parts, images):
    first, history = train(images, settings(parts, steps=4))
    state = torch.get_rng_state()
    again, _ = train(images, settings(parts, steps=4))
    other, _ = train(images, settings(parts, steps=4, seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
        assert torch.isfinite(value).all(), key
    assert any(not torch.equal(v, other.state_dict()[k]) for k, v in first.state_dict().items())
    assert len(history) == 1 and history[0].step == 4


@pytest.mark.parametrize(("parts", "steps"), [(PAPER, 60), (SMALL, 60)], ids=["paper", "multiscale"])
def test_training_learns_to_denoise(parts, steps, images):
    losses = []
    trainer = Trainer(images, settings(parts, steps=steps, learning_rates={"mixture": 0.1, "scalars": 0.05}))
    before = trainer.validate()
    while trainer.step < steps:
        losses.append(trainer.advance())
    after = trainer.validate(losses[-1])
    assert all(math.isfinite(value) for value in losses)
    assert sum(losses[-15:]) < 0.95 * sum(losses[:15])
    for level, value in after.psnr.items():
        assert value > before.psnr[level]
        assert value > after.psnr_noisy[level] + 1, (level, value)
    assert str(after).startswith(f"step {steps}  loss")


@pytest.mark.parametrize("parts", [PAPER, SMALL], ids=["paper", "multiscale"])
def test_the_finished_prior_obeys_its_constraints(parts, images):
    trainer = Trainer(images, settings(parts, steps=3, learning_rates={"filters": 0.1}))
    for _ in range(3):
        trainer.advance()
    prior = trainer.finished()
    assert not any(p.requires_grad for p in prior.parameters())
    widths = prior.experts.width.clone()
    prior.measure_widths()
    assert torch.equal(prior.experts.width, widths)
    if parts is PAPER:
        assert float(prior.bank.low_pass.sum()) == pytest.approx(1, abs=1e-5)
        assert float(prior.bank.fan.abs().sum()) == pytest.approx(1, abs=1e-5)
        assert (prior.bank.gain >= 0).all()
    else:
        assert all(k.sum((1, 2)).abs().max() < 1e-5 for k in prior.bank.kernels)


def test_every_parameter_learns(images):
    for parts in (PAPER, SMALL):
        trainer = Trainer(images, settings(parts, steps=2))
        start = {k: v.detach().clone() for k, v in trainer.finished().named_parameters()}
        trainer.advance()
        trainer.advance()
        for key, value in trainer.finished().named_parameters():
            assert not torch.equal(value, start[key]), key


def test_resuming_continues_exactly(images):
    chosen = settings(SMALL, steps=6)
    whole = Trainer(images, chosen)
    for _ in range(6):
        whole.advance()
    first = Trainer(images, chosen)
    for _ in range(3):
        first.advance()
    stored = first.state()
    first.advance()  # what happens later does not touch what was stored
    second = Trainer(images, chosen)
    second.restore(stored)
    assert second.step == 3
    for _ in range(3):
        second.advance()
    for key, value in whole.finished().state_dict().items():
        assert torch.equal(value, second.finished().state_dict()[key]), key


def test_a_checkpoint_of_another_training_is_refused(images):
    stored = Trainer(images, settings(SMALL)).state()
    with pytest.raises(DataError, match="E344"):
        Trainer(images, settings(PAPER)).restore(stored)
    with pytest.raises(DataError, match="E344"):
        Trainer(images, settings(SMALL)).restore({})


def test_reports(images):
    seen, validations = [], []
    chosen = settings(SMALL, steps=5, validate_every=2)
    _, history = train(images, chosen, validations.append, lambda *args: seen.append(args))
    assert seen == [(i, 5) for i in range(1, 6)]
    assert [v.step for v in history] == [2, 4, 5] == [v.step for v in validations]


def test_validation_is_repeatable_and_leaves_noise_out(images):
    prior = Trainer(images, settings(SMALL)).finished()
    crops = validation_crops(images, 2)
    first, second = validate(prior, crops), validate(prior, crops)
    assert first.psnr == second.psnr
    for level, value in first.psnr_noisy.items():
        assert value == pytest.approx(-20 * math.log10(level), abs=0.3)


def test_levels_cover_the_range():
    generator = torch.Generator().manual_seed(0)
    chosen = settings(SMALL, batch=4, level_low=0.01, level_high=1.0)
    for _ in range(20):
        levels = training._draw_levels(chosen, generator)
        edges = 0.01 * 100 ** (torch.arange(5) / 4)
        assert ((levels >= edges[:-1] * 0.999) & (levels <= edges[1:] * 1.001)).all()


def test_learning_rate_warms_up_and_decays():
    chosen = settings(SMALL, steps=100, warm_up=10)
    rates = [training._rate(step, chosen) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1, abs=0.01)
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.03
