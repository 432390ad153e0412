import time

import pytest

from gadget.errors import ConfigError
from gadget.settings.load import from_xml, known_names, load
from gadget.settings.schema import GadgetSettings
from pogmdm_core import Settings

# what a missing <configuration> comes as: the bytes of a real Gadgetron, and what others may make of it
NO_CONFIGURATION = (
    b'<?xml version="1.0"?>\n',
    b"<?xml version='1.0' encoding='UTF-8'?>",
    b"\xef\xbb\xbf<!-- none -->\n\0",
)


def xml(text):
    return from_xml(f"<configuration>{text}</configuration>".encode())


def test_defaults_are_the_schema():
    assert load() == GadgetSettings()
    for text in (b"", b"\0\n", *NO_CONFIGURATION):
        assert from_xml(text) == GadgetSettings()
    assert issubclass(GadgetSettings, Settings)
    assert load().output.maps == ("image", "std")


def test_both_spellings_of_a_property():
    found = xml(
        '<property name="sampler.n_samples" value="3"/>'
        "<property><name> output.maps </name><value>mean, std</value></property>"
        '<property name="noise.whiten" value="off"/><property name="coils.n_virtual" value=""/>'
    )
    assert found.sampler.n_samples == 3
    assert found.output.maps == ("mean", "std")
    assert found.noise.whiten == "off"
    assert found.coils.n_virtual is None


def test_order_defaults_preset_yaml_xml_overrides(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text("preset: fast\nmap:\n  steps: 60\nsampler:\n  n_steps: 21\nlimits.idle_timeout_s: 1e-3\n")
    properties = {"settings": str(file), "sampler.n_steps": "22", "sampler.seed": "5"}
    found = load(properties=properties, overrides={"sampler.seed": 6})
    assert found.sampler.n_samples == 4  # preset
    assert found.map.steps == 60  # YAML over preset
    assert found.sampler.n_steps == 22  # XML over YAML
    assert found.sampler.seed == 6
    assert found.limits.idle_timeout_s == 0.001  # YAML reads 1e-3 as text
    assert found.preset == "fast"
    assert load(preset="quality", properties=properties).sampler.n_samples == 8
    assert load(yaml=file).sampler.n_steps == 21


def test_sampler_names_work_at_the_top_in_every_layer():
    assert load(preset="fast", properties={"n_samples": "7"}).sampler.n_samples == 7


@pytest.mark.parametrize("name", ["default", "fast", "quality", "paper"])
def test_presets_are_valid(name):
    assert load(preset=name).preset == name
    assert load(preset="paper").sampler.method == "paper"


@pytest.mark.parametrize(
    ("properties", "code", "text"),
    [
        ({"sampler.n_sampels": "3"}, 101, "did you mean 'sampler.n_samples'?"),
        ({"output.series": "3"}, 101, "did you mean 'output.series_base'?"),
        ({"n_samplse": "3"}, 101, "did you mean 'sampler.n_samples'?"),
        ({"sampler.n_samples": "4.5"}, 103, "setting sampler.n_samples is '4.5':"),
        ({"sampler.n_samples": "-1"}, 103, "greater than or equal to 0"),
        ({"output.maps": "image,sdt"}, 103, "setting output.maps.1 is 'sdt':"),
        ({"output.maps": "std,std"}, 103, "each once"),
        ({"noise.whiten": "maybe"}, 103, "'auto', 'on', 'off' or 'upstream'"),
        ({"trigger": "frame"}, 103, "setting trigger is 'frame'"),
        ({"output.dtype": "int16"}, 103, "'float32' or 'uint16'"),
        ({"preset": "fats"}, 104, "did you mean 'fast'?"),
        ({"settings": "/nowhere/x.yaml"}, 107, "'x.yaml' cannot be read"),
        ({"sampler": "x"}, 103, "setting sampler is 'x'"),
    ],
)
@pytest.mark.fault("F57")
def test_mistakes_are_told_in_one_line(properties, code, text):
    with pytest.raises(ConfigError) as caught:
        load(properties=properties)
    assert caught.value.code == code
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("log: info\nlog: debug\n", 102),
        ("sampler: {n_steps: 3, n_steps: 4}\n", 102),
        ("sampler: [", 105),
        ("- 1\n- 2\n", 105),
        ("log: !!python/object/apply:os.system ['true']\n", 105),
        ("1: 2\n", 105),
        ("a: \x00", 105),
        ("#" * (1 << 20) + "\n#", 106),
    ],
)
@pytest.mark.fault("F57")
def test_yaml_that_is_refused(tmp_path, text, code):
    file = tmp_path / "s.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"E{code}"):
        load(yaml=file)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('<propery name="log" value="debug"/>', 108),
        ('<property name="log"/>', 108),
        ('<property value="debug"/>', 108),
        ('<property name="log" value="debug"/><property name="log" value="info"/>', 102),
        ('<property name="settings" value="site.yaml"/>', 108),
        ('<property name="settings" value="../site.yaml"/>', 108),
        ('<property name="settings" value="/etc/pogmdm/../../home/site.yaml"/>', 108),
        ('<property name="prior" value="../mine.safetensors"/>', 108),
        ('<property name="prior" value="mine.safetensors"/>', 108),
        ('<property name="prior" value="/opt/../mine.safetensors"/>', 108),
    ],
)
@pytest.mark.fault("F58")
def test_xml_that_is_refused(text, code):
    with pytest.raises(ConfigError, match=f"E{code}"):
        xml(text)


@pytest.mark.fault("F58")
def test_files_may_be_named_by_their_full_path(tmp_path):
    file = tmp_path / "site.yaml"
    file.write_text("sampler.n_samples: 3")
    found = xml(f'<property name="settings" value="{file}"/><property name="prior" value="/opt/mine.safetensors"/>')
    assert (found.sampler.n_samples, found.prior) == (3, "/opt/mine.safetensors")
    assert xml('<property name="prior" value="paper"/>').prior == "paper"


@pytest.mark.fault("F58")
def test_configuration_that_is_not_xml_is_refused():
    with pytest.raises(ConfigError, match="E108"):
        from_xml(b"<configuration><property")


@pytest.mark.fault("F57", "F58")
def test_many_comments_cost_no_time():
    comments = b'<!-- <property name="log" value="info"/> -->\n' * 2000
    start = time.monotonic()
    assert from_xml(comments) == GadgetSettings()
    with pytest.raises(ConfigError, match="E108"):
        from_xml(comments + b"<!-- no end")
    whole = comments + b'<configuration><property name="preset" value="fast"/></configuration>'
    assert from_xml(whole).preset == "fast"
    assert time.monotonic() - start < 1


def test_a_services_own_settings_are_weaker_than_a_connections(tmp_path):
    file = tmp_path / "site.yaml"
    file.write_text("sampler.n_samples: 7\nlog: warning\n")
    defaults = {"preset": "fast", "settings": str(file), "sampler.seed": "5", "log": "error"}
    alone = load(defaults=defaults)
    assert (alone.preset, alone.sampler.n_samples, alone.sampler.seed, alone.log) == ("fast", 7, 5, "error")
    beside = load(properties={"preset": "quality", "sampler.seed": "6"}, defaults=defaults)
    assert (beside.preset, beside.prior, beside.sampler.n_samples, beside.sampler.seed) == ("quality", "quality", 7, 6)
    other = tmp_path / "other.yaml"
    other.write_text("sampler.n_samples: 9\n")
    assert load(properties={"settings": str(other)}, defaults=defaults).sampler.n_samples == 9


def test_known_names_are_dotted():
    assert {"sampler.n_samples", "output.maps", "device", "limits.max_coils"} <= set(known_names())


@pytest.mark.parametrize("name", ["sampler.map_steps", "map_steps"])
def test_a_name_of_before_is_refused_with_that_of_now(name):
    with pytest.raises(ConfigError, match=f"E101 the setting '{name}' is now 'map.steps'"):
        load(properties={name: "4"})
