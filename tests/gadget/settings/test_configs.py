import re
from xml.etree import ElementTree

import pytest

from gadget.settings import configs
from gadget.settings import load as settings
from pogmdm_core.errors import ConfigError, OutputError

SHIPPED = (
    "pogmdm_beside_grappa.xml",
    "pogmdm_cartesian.xml",
    "pogmdm_cartesian_buffers.xml",
    "pogmdm_connect.xml",
    "pogmdm_dicom.xml",
    "pogmdm_distributed.xml",
    "pogmdm_noncartesian.xml",
    "pogmdm_standalone.xml",
)
READERS = {("gadgetron_core_readers", "AcquisitionReader"), ("gadgetron_core_readers", "WaveformReader")}


def parse(text):
    return ElementTree.fromstring(text)  # noqa: S314 - our own files


def parts(node):
    return node.findtext("dll"), node.findtext("classname")


@pytest.mark.parametrize("name", SHIPPED)
def test_chains_are_what_gadgetron_parses(name):
    root = parse(configs.text_of(name))
    assert root.tag == "configuration"
    assert root.findtext("version") == "2"
    assert {parts(reader) for reader in root.findall("readers/reader")} == READERS
    # without a writer for anything else, only images leave
    assert [parts(writer) for writer in root.findall("writers/writer")] == [("gadgetron_core_writers", "ImageWriter")]
    nodes = {"gadget", "external", "parallel", "distributed"}
    assert {child.tag for stream in root.iter("stream") for child in stream} <= nodes
    (external,) = root.iter("external")
    if name == "pogmdm_connect.xml":
        # not localhost: Gadgetron tries its first address only, which may be the IPv6 one
        assert external.find("connect").attrib == {"address": "127.0.0.1", "port": "18000"}
        assert external.find("execute") is None
    elif name == "pogmdm_distributed.xml":
        return  # below
    else:
        assert external.find("execute").attrib == {"name": "gadget", "target": "pogmdm_recon", "type": "python"}
    # a <name> child beside properties would make the server resolve '@' in their values
    assert external.find("configuration/name") is None
    given = {p.get("name"): p.get("value") for p in external.findall("configuration/property")}
    settings.load(properties={key: value for key, value in given.items() if value})
    # the noise readouts are consumed exactly where a NoiseAdjustGadget comes before
    whitened = "NoiseAdjustGadget" in [g.findtext("classname") for g in root.findall("stream/gadget")]
    assert given.get("noise.whiten", "auto") == ("upstream" if whitened else "auto")
    assert "AutoScaleGadget" not in [c for _, c in map(parts, root.iter("gadget"))]


def test_cartesian_chain_order():
    root = parse(configs.text_of("pogmdm_cartesian"))
    order = [c.findtext("classname") if c.tag == "gadget" else "external" for c in root.find("stream")]
    assert order == [
        "NoiseAdjustGadget",
        "AsymmetricEchoAdjustROGadget",
        "RemoveROOversamplingGadget",
        "external",
        "ImageFinishGadget",
    ]
    assert {g.findtext("dll") for g in root.findall("stream/gadget")} == {"gadgetron_mricore"}


def test_noncartesian_chain_leaves_samples_and_trajectory_together():
    root = parse(configs.text_of("pogmdm_noncartesian"))
    order = [c.findtext("classname") if c.tag == "gadget" else "external" for c in root.find("stream")]
    assert order == ["NoiseAdjustGadget", "external", "ImageFinishGadget"]
    assert {g.findtext("dll") for g in root.findall("stream/gadget")} == {"gadgetron_mricore"}


def test_buffered_chain_order():
    root = parse(configs.text_of("pogmdm_cartesian_buffers"))
    order = [c.findtext("classname") if c.tag == "gadget" else "external" for c in root.find("stream")]
    # what follows the trigger needs all it names before it
    assert order[3:] == [
        "AcquisitionAccumulateTriggerGadget",
        "BucketToBufferGadget",
        "GenericReconCartesianReferencePrepGadget",
        "GenericReconEigenChannelGadget",
        "external",
        "ImageFinishGadget",
    ]


def test_the_image_of_grappa_and_ours_leave_in_series_of_their_own():
    root = parse(configs.text_of("pogmdm_beside_grappa"))
    (parallel,) = root.findall("stream/parallel")
    assert parts(parallel.find("branch")) == ("gadgetron_core_parallel", "AcquisitionFanout")
    assert parts(parallel.find("merge")) == ("gadgetron_core_parallel", "UnorderedMerge")
    streams = {stream.get("key"): stream for stream in parallel.findall("stream")}
    assert list(streams) == ["grappa", "pogmdm"]
    # what makes ReconData, reconstructs it and takes image arrays apart, in the order that their messages need
    assert [gadget.findtext("classname") for gadget in streams["grappa"]] == [
        "AcquisitionAccumulateTriggerGadget",
        "BucketToBufferGadget",
        "GenericReconCartesianReferencePrepGadget",
        "GenericReconEigenChannelGadget",
        "GenericReconCartesianGrappaGadget",
        "GenericReconPartialFourierHandlingFilterGadget",
        "GenericReconFieldOfViewAdjustmentGadget",
        "ImageArraySplitGadget",
        "ComplexToFloatGadget",
    ]
    assert [child.tag for child in streams["pogmdm"]] == ["external"]
    assert [g.findtext("classname") for g in root.findall("stream/gadget")] == [
        "NoiseAdjustGadget",
        "AsymmetricEchoAdjustROGadget",
        "RemoveROOversamplingGadget",
        "ImageFinishGadget",
    ]
    # GRAPPA counts its series from image_series + 1, its maps of encoding 0 go up to 3000 in steps of 100
    assert settings.load(properties=shipped_properties("pogmdm_beside_grappa")).output.series_base == 500


def test_the_distributed_chain_holds_what_survives_gadgetrons_serialiser():
    """It drops the target of <execute>, the address of <connect> and all that is inside <configuration>."""
    root = parse(configs.text_of("pogmdm_distributed"))
    order = [c.findtext("classname") if c.tag == "gadget" else c.tag for c in root.find("stream")]
    assert order == [
        "NoiseAdjustGadget",
        "AsymmetricEchoAdjustROGadget",
        "RemoveROOversamplingGadget",
        "distributed",
        "ImageFinishGadget",
    ]
    distributed = root.find("stream/distributed")
    assert root.find(".//puredistributed") is None
    kinds = {"Acquisition", "Image", "Waveform"}
    for part in ("reader", "writer"):
        found = {parts(node) for node in distributed.findall(f"{part}s/{part}")}
        assert found == {(f"gadgetron_core_{part}s", f"{kind}{part.title()}") for kind in kinds}
    distributor = distributed.find("distributor")
    assert parts(distributor) == ("gadgetron_core_distributed", "AcquisitionDistributor")
    assert distributor.find("property").attrib == {"name": "parallel_dimension", "value": "slice"}
    (external,) = distributed.findall("stream/external")
    assert external.find("connect").attrib == {"port": "18020"}
    assert len(external.find("configuration")) == 0
    assert [child.tag for child in distributed.find("stream")] == ["external"]


def shipped_properties(name):
    node = parse(configs.gadget_configuration(f"{name}.xml", []))
    return {p.get("name"): p.get("value") for p in node.findall("property") if p.get("value")}


@pytest.mark.parametrize("name", [name for name in SHIPPED if "distributed" not in name])
def test_the_settings_named_in_the_comments_exist(name):
    ours = configs.text_of(name).partition("<external>")[2].partition("</external>")[0]
    named = re.findall(r'<property name="([^"]+)" value="([^"]+)"/>', ours)
    assert len(named) > 7
    settings.load(properties={key: value for key, value in named if key != "settings"})
    with pytest.raises(ConfigError):
        settings.load(properties={"sampler.n_sample": "3"})


def test_properties_replace_the_chains_own(tmp_path):
    chain = tmp_path / "mine.xml"
    chain.write_text(
        "<configuration><version>2</version><stream><external><execute name='other' type='python'/>"
        "<configuration><property name='a' value='0'/></configuration></external>"
        "<external><execute name='gadget' target='pogmdm_recon' type='python'/><configuration>"
        "<property name='preset' value='quality'/><property><name>device</name><value>cuda</value></property>"
        "<property name='trigger' value='slice'/></configuration></external></stream></configuration>"
    )
    node = parse(configs.gadget_configuration(chain, [("preset", "fast"), ("device", "<cpu>")]))
    assert node.tag == "configuration"
    assert [(p.get("name"), p.get("value")) for p in node.findall("property")] == [
        ("trigger", "slice"),
        ("preset", "fast"),
        ("device", "<cpu>"),
    ]


@pytest.mark.fault("F58")
def test_default_chain_and_missing_configuration(tmp_path):
    assert b'name="preset"' in configs.gadget_configuration(None, [])
    chain = tmp_path / "bare.xml"
    chain.write_text(
        "<configuration><version>2</version><stream><external>"
        "<execute name='gadget' target='pogmdm_recon' type='python'/></external></stream></configuration>"
    )
    assert configs.gadget_configuration(chain, []) == b"<configuration />"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "E108 there is no chain"),
        ("<configuration><version>2</version>", "E108 .*not readable XML"),
        ("<configuration><stream/></configuration>", "E108 .*version 2"),
        ("<configuration><version>2</version><stream/></configuration>", "E108 .*no <external>"),
    ],
)
def test_unusable_chains_are_refused(tmp_path, content, message):
    chain = tmp_path / "c.xml"
    if content is not None:
        chain.write_text(content)
    with pytest.raises(ConfigError, match=message):
        configs.gadget_configuration(chain, [])


@pytest.mark.fault("F58")
def test_a_shipped_name_is_not_looked_up_through_a_path():
    with pytest.raises(ConfigError, match="E108"):
        configs.gadget_configuration("../elsewhere/pogmdm_standalone.xml", [])


def test_install_copies_and_refuses_to_replace(tmp_path):
    folder = tmp_path / "share" / "config"
    assert sorted(p.name for p in configs.install(folder)) == list(SHIPPED)
    assert (folder / SHIPPED[0]).read_text() == configs.text_of(SHIPPED[0])
    configs.install(folder)  # the same files again are no conflict
    (folder / SHIPPED[0]).write_text("edited")
    with pytest.raises(OutputError, match="E603"):
        configs.install(folder)
    assert (folder / SHIPPED[0]).read_text() == "edited"
    configs.install(folder, overwrite=True)
    assert (folder / SHIPPED[0]).read_text() == configs.text_of(SHIPPED[0])


def test_unknown_names_list_what_there_is():
    with pytest.raises(ConfigError, match=r"E109 .*pogmdm_cartesian\.xml"):
        configs.text_of("nonsense")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_preset_in_a_settings_file_is_honoured(name, tmp_path):
    """The chain's own preset is empty: it must not overrule the file."""
    file = tmp_path / "mine.yaml"
    file.write_text("preset: fast\n")
    raw = configs.gadget_configuration(name, [("settings", str(file))])
    assert settings.from_xml(raw).preset == "fast"
    assert settings.from_xml(configs.gadget_configuration(name, [])).preset == "default"
