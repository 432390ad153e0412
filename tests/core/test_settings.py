import pytest
from pydantic import ValidationError

from pogmdm_core.registry import SAMPLERS
from pogmdm_core.settings import SamplerSettings, Settings


def test_defaults():
    settings = Settings()
    assert settings.sampler.method == "renoise" and settings.device == "auto"
    assert Settings.model_validate({}) == settings


def test_sampler_names_at_the_top():
    assert Settings(n_samples=3) == Settings(sampler={"n_samples": 3})
    both = Settings(n_samples=3, sampler={"n_steps": 7}, device="cpu")
    assert (both.sampler.n_samples, both.sampler.n_steps, both.device) == (3, 7, "cpu")
    assert Settings(seed=4, sampler=SamplerSettings(n_steps=7)).sampler.seed == 4


def test_a_name_given_twice():
    with pytest.raises(ValidationError, match="n_samples is given twice"):
        Settings(n_samples=3, sampler={"n_samples": 4})


@pytest.mark.parametrize(
    "values",
    [
        {"n_sample": 3},
        {"sampler": {"steps": 3}},
        {"coils": {"smooth": 1}},
        {"uncertainty": {"n": 1}},
        {"coil": {}},
    ],
)
def test_unknown_names(values):
    with pytest.raises(ValidationError, match="[Ee]xtra"):
        Settings.model_validate(values)


@pytest.mark.parametrize(
    "values",
    [
        {"n_samples": -1},
        {"n_samples": 1000},
        {"n_steps": 0},
        {"start_level": 0.01},
        {"start_level": 11},
        {"end_level": 0},
        {"cg_steps": 0},
        {"map": {"tolerance": 1}},
        {"seed": -1},
        {"seed": 2**43},
        {"start_level": float("nan")},
        {"start_level": float("inf")},
        {"map": {"level": float("nan")}},
        {"coils": {"smoothness": 0}},
        {"coils": {"smoothness": float("nan")}},
        {"coils": {"init": "espirit"}},
        {"coils": {"newton_steps": 0}},
        {"uncertainty": {"method": "maybe"}},
        {"device": "gpu"},
        {"device": "cuda:x"},
        {"device": "cuda:0 "},
    ],
)
def test_values_out_of_range(values):
    with pytest.raises(ValidationError):
        Settings.model_validate(values)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:3"])
def test_devices(device):
    assert Settings(device=device).device == device


def test_likelihood_belongs_to_the_method():
    with pytest.raises(ValidationError, match="likelihood=unit belongs to method=paper"):
        Settings(likelihood="unit")
    with pytest.raises(ValidationError, match="method=paper needs"):
        Settings(method="paper")
    assert Settings(method="paper", likelihood="annealed").sampler.likelihood == "annealed"


def test_end_level_is_below_the_start():
    with pytest.raises(ValidationError, match=r"end_level 0\.3 must be below start_level 0\.2"):
        Settings(end_level=0.3)
    with pytest.raises(ValidationError, match="must be below"):
        Settings(end_level=0.2)
    assert Settings(end_level=0.1).sampler.end_level == 0.1


def test_settings_are_frozen():
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.device = "cpu"
    with pytest.raises(ValidationError, match="frozen"):
        settings.sampler.n_steps = 3


def test_every_field_says_what_it_is():
    for section in (SamplerSettings, *(f.annotation for f in Settings.model_fields.values() if f.default_factory)):
        for name, field in section.model_fields.items():
            assert field.description, name


def test_not_a_mapping():
    with pytest.raises(ValidationError):
        Settings.model_validate([1])
    with pytest.raises(ValidationError):
        Settings.model_validate({"n_samples": 3, "sampler": None})


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"sampler": {"map_steps": 3}}, "sampler.map_steps is now map.steps"),
        ({"sampler": {"map_level": 0.1}}, "sampler.map_level is now map.level"),
        ({"sampler": {"map_tolerance": 0.1}}, "sampler.map_tolerance is now map.tolerance"),
        ({"sampler": {"prior_weight": 1}}, "sampler.prior_weight is now map.prior_weight"),
        ({"map_steps": 3}, "map_steps is now map.steps"),
    ],
)
def test_names_of_before_are_refused_with_those_of_now(values, text):
    with pytest.raises(ValidationError, match=text):
        Settings(**values)


def test_a_method_is_one_that_is_registered(monkeypatch):
    with pytest.raises(ValidationError, match="expected one of renoise, langevin, paper"):
        Settings(method="gibbs")
    monkeypatch.setitem(SAMPLERS, "gibbs", "nowhere:Gibbs")
    assert Settings(method="gibbs").sampler.method == "gibbs"
