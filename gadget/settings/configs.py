"""The shipped Gadgetron chains (XML) and presets (YAML): find, show, install, and fill in settings."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

from pogmdm_core.errors import ConfigError, OutputError

DEFAULT_CHAIN = "pogmdm_standalone.xml"
_HERE = Path(__file__).resolve().parent
_INSTALLED = Path("share/gadgetron/config")


def chain_folders() -> list[Path]:
    """Folders that may hold the XML files, best first: the source tree, then the installation."""
    schemes = {sysconfig.get_path("data"), sysconfig.get_path("data", sysconfig.get_preferred_scheme("user"))}
    installed = [Path(path) / _INSTALLED for path in sorted(schemes)]
    return [folder for folder in (_HERE.parents[1] / "xml_configs", *installed) if folder.is_dir()]


def chains() -> dict[str, Path]:
    """Shipped chains by file name; empty when the installation lacks them."""
    for folder in chain_folders():
        found = {path.name: path for path in sorted(folder.glob("pogmdm*.xml"))}
        if found:
            return found
    return {}


def presets() -> dict[str, Path]:
    """Shipped presets by name."""
    return {path.stem: path for path in sorted((_HERE / "presets").glob("*.yaml"))}


def text_of(name: str) -> str:
    """Content of a shipped chain (``pogmdm_cartesian.xml``, suffix optional) or preset (``fast``).

    Raises
    ------
    ConfigError
        E109 when nothing shipped has this name.
    """
    available = {**presets(), **chains()}
    path = available.get(name) or available.get(f"{name}.xml")
    if path is None:
        raise ConfigError(109, f"nothing shipped is called {name!r}.", f"There are: {', '.join(available)}.")
    return path.read_text(encoding="utf-8")


def install(folder: Path, overwrite: bool = False) -> list[Path]:
    """Copy the shipped chains to a folder, e.g. Gadgetron's ``share/gadgetron/config``.

    Returns
    -------
        The files now there. Files that are already the same are left alone.

    Raises
    ------
    OutputError
        E603 when a different file is there, E601 when the folder cannot be written.
    ConfigError
        E109 when this installation has no chains.
    """
    sources = chains()
    if not sources:
        raise ConfigError(109, "this installation has no XML files.", "Reinstall the package.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        changed = {n: p for n, p in sources.items() if not _same(p, folder / n)}
        clash = [name for name in changed if (folder / name).exists()]
        if clash and not overwrite:
            raise OutputError(603, f"{folder / clash[0]} exists and differs.", "Add --overwrite to replace it.")
        for name, path in changed.items():
            (folder / name).write_bytes(path.read_bytes())
    except OSError as error:
        raise OutputError(601, f"cannot write to {folder}: {error.strerror}.", "Check its permissions.") from error
    return [folder / name for name in sources]


def gadget_configuration(chain: str | Path | None, properties: Sequence[tuple[str, str]]) -> bytes:
    """Make the ``<configuration>`` node that Gadgetron would send our gadget for a chain.

    Parameters
    ----------
    chain
        Path of an XML file, or name of a shipped one; None for `DEFAULT_CHAIN`.
    properties
        Names and values that replace or join the chain's own properties.

    Returns
    -------
        The node as XML bytes.

    Raises
    ------
    ConfigError
        E108 when the file is missing, is not XML, or its stream does not call this gadget.
    """
    name = str(chain or DEFAULT_CHAIN)
    path = Path(name) if Path(name).is_file() else chains().get(Path(name).name)
    if path is None or (path.name != name and not Path(name).is_file()):
        raise ConfigError(108, f"there is no chain {name}.", f"Shipped: {', '.join(chains())}; or give a path.")
    try:
        root = ElementTree.fromstring(path.read_bytes())  # noqa: S314 - expat refuses entity bombs
    except (ElementTree.ParseError, OSError) as error:
        raise ConfigError(108, f"{path.name} is not readable XML ({type(error).__name__}).") from error
    if (root.findtext("version") or "").strip() != "2":
        raise ConfigError(108, f"{path.name} is not a version 2 configuration.", "See the shipped ones.")
    node = our_configuration(root)
    if node is None:
        raise ConfigError(
            108,
            f"{path.name} has no <external> that calls this gadget.",
            'It needs <execute name="gadget" target="pogmdm_recon" type="python"/>.',
        )
    chosen = dict(properties)
    for prop in [p for p in node.findall("property") if _property_name(p) in chosen]:
        node.remove(prop)
    for key, value in chosen.items():
        ElementTree.SubElement(node, "property", name=key, value=value)
    return ElementTree.tostring(node)


def our_configuration(root: ElementTree.Element) -> ElementTree.Element | None:
    """Find the configuration of our <external>; an absent one counts as empty, as in Gadgetron."""
    for external in _externals(root):
        node = external.find("configuration")
        return ElementTree.Element("configuration") if node is None else node
    return None


def _externals(root: ElementTree.Element) -> Iterator[ElementTree.Element]:
    for external in root.iter("external"):
        execute = external.find("execute")
        if external.find("connect") is not None or (execute is not None and execute.get("name") == "gadget"):
            yield external


def _property_name(prop: ElementTree.Element) -> str:
    """Name of a property in either spelling: attribute or child element."""
    return (prop.get("name") or prop.findtext("name") or "").strip()


def _same(a: Path, b: Path) -> bool:
    return b.is_file() and a.read_bytes() == b.read_bytes()
