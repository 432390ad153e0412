"""How a client of `pogmdm serve` introduces itself: Gadgetron's ``<connect>`` or FIRE / OpenRecon.

Both send a configuration and the scan's header before the data. They differ in what a configuration is, and in how
an error is told:

========= ================================================ ======================= ===================
dialect   configuration                                    header                  errors
========= ================================================ ======================= ===================
Gadgetron CONFIG (2): the ``<configuration>`` node         HEADER (3)              ERROR (8), CLOSE
FIRE      CONFIG_FILE (1): a name, 1024 bytes; or a text   HEADER (3), NUL at end  TEXT (5), CLOSE
          (2) with a NUL at its end; then TEXT (5), JSON
========= ================================================ ======================= ===================
"""

from __future__ import annotations

import ipaddress
import json
import math
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from gadget import logs
from gadget.errors import ConfigError, DataError
from gadget.stream.wire import CLOSE, CONFIG, CONFIG_FILE, CONFIG_FILE_BYTES, HEADER, TEXT, ExactSocket, broken

if TYPE_CHECKING:
    from gadget.settings.schema import GadgetSettings

MAX_TEXT_BYTES = 8 << 20
_OPENRECON = "openrecon"


class ServedConnection:
    """A client's connection; takes the place of gadgetron's own `Connection` under a `Link`.

    Parameters
    ----------
    raw
        Connected socket.
    timeout_s
        Seconds the whole introduction may take.
    defaults
        Settings for what the client leaves open, dotted names to values.
    """

    def __init__(
        self, raw: socket.socket, timeout_s: float = 30.0, defaults: Mapping[str, object] | None = None
    ) -> None:
        self.socket = ExactSocket(raw, timeout_s)
        self.readers: dict[int, Callable[[ExactSocket], Any]] = {}
        self.fire = False
        self._timeout_s = timeout_s
        self._defaults = defaults or {}

    def add_reader(self, mid: int, reader: Callable[[ExactSocket], Any]) -> None:
        """Name what reads messages of an id."""
        self.readers[mid] = reader

    def introduction(self) -> tuple[GadgetSettings, bytes]:
        """Read everything up to the first message of data.

        Returns
        -------
            The settings, and the XML of the scan's header as received.

        Raises
        ------
        TransportError
            E401 to E403 (see `ExactSocket.read`), E406 the messages come in another order.
        DataError
            E302 configuration, header or parameters above 8 MB.
        ConfigError
            E108 the configuration is not XML, E112 its name is not on the list, E113 a file of this machine is named
            by parameters or by another machine; and those of `gadget.settings.load.load`.
        """
        from gadget.settings.load import load
        from gadget.settings.schema import LimitsSettings

        self.socket.deadline = time.monotonic() + self._timeout_s
        mid = self._id()
        if mid == CONFIG_FILE:
            self.fire = True
            name = self.socket.read(CONFIG_FILE_BYTES).split(b"\0", 1)[0].decode("utf-8", "replace").strip()
            properties = named_configuration(name)
        elif mid == CONFIG:
            text = self._text("configuration")
            self.fire = text.endswith(b"\0")
            properties = written_configuration(text)
        else:
            raise _order(mid, "a configuration (id 1 or 2)")
        mid = self._id()
        if mid != HEADER:
            raise _order(mid, "the header (id 3)")
        header = self._text("header")
        self.fire = self.fire or header.endswith(b"\0")
        parameters: dict[str, object] = {}
        if self.fire:
            # a scanner may prepare for minutes before its first message of data
            self.socket.deadline, self.socket.idle_timeout_s = math.inf, LimitsSettings().idle_timeout_s
            while (mid := self._id()) == TEXT:
                parameters.update(read_parameters(self._text("text")))
            self.socket.unread(struct.pack("<H", mid))
        self.socket.deadline = math.inf
        refuse_files(parameters)
        if not self._is_local():
            refuse_files(properties)
        return load(properties=properties, overrides=parameters, defaults=self._defaults), header

    def _id(self) -> int:
        (mid,) = struct.unpack("<H", self.socket.read(2, first=True))
        return int(mid)

    def _text(self, what: str) -> bytes:
        (n_bytes,) = struct.unpack("<I", self.socket.read(4))
        if n_bytes > MAX_TEXT_BYTES:
            raise DataError(302, f"the {what} has {n_bytes} bytes, more than {MAX_TEXT_BYTES}.")
        return self.socket.read(n_bytes)

    def _is_local(self) -> bool:
        peer = self.socket.socket.getpeername()
        if not isinstance(peer, tuple):  # a Unix socket
            return True
        address = ipaddress.ip_address(peer[0].partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        return (mapped or address).is_loopback


def named_configuration(name: str) -> dict[str, object]:
    """Properties for a configuration's name: a preset, a shipped chain (with or without ``.xml``) or ``openrecon``.

    Raises
    ------
    ConfigError
        E112 any other name. Nothing is looked up in the file system or imported.
    """
    from gadget.settings import configs, sources

    if name == _OPENRECON:
        return {}
    if name in configs.presets():
        return {"preset": name}
    for chain in (name, f"{name}.xml"):
        if chain in configs.chains():
            node = configs.gadget_configuration(chain, [])
            return dict(sources.xml_properties(ElementTree.fromstring(node)))  # noqa: S314 - our own file
    names = ", ".join([_OPENRECON, *configs.presets(), *configs.chains()])
    raise ConfigError(112, f"there is no configuration {name[:40]!r}.", f"There are: {names}.")


def written_configuration(text: bytes) -> dict[str, object]:
    """Properties of a configuration that was sent: our ``<configuration>`` node, or a whole chain that has one.

    Raises
    ------
    ConfigError
        E108 a chain without this gadget; those of `gadget.settings.sources.parse_configuration` and `xml_properties`.
    """
    from gadget.settings import configs, sources

    root = sources.parse_configuration(text)
    if root is None:
        return {}
    if root.find("stream") is not None:
        node = configs.our_configuration(root)
        if node is None:
            raise ConfigError(108, "the chain that was sent has no <external> that calls this gadget.")
        root = node
    return dict(sources.xml_properties(root))


def read_parameters(text: bytes) -> dict[str, object]:
    """Settings from the text of a FIRE client: JSON ``{"version": ..., "parameters": {name: value}}``.

    Any other text is skipped, and only its length logged, for it may hold anything. Empty values count as not given.
    """
    try:
        parameters = json.loads(text.rstrip(b"\0"))["parameters"]
        return {str(name): value for name, value in parameters.items() if value not in ("", None)}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        logs.get().info("skipped a text of %d bytes that holds no parameters", len(text))
        return {}


def refuse_files(named: dict[str, object]) -> None:
    """Raise ConfigError E113 if settings name a file of this machine."""
    from pogmdm_core.prior.weights import shipped_weights

    if "dump" in named:
        raise ConfigError(
            113, "a folder for dumps cannot be named from elsewhere.", "Set it in the XML of this machine."
        )
    if "settings" in named:
        raise ConfigError(113, "settings files cannot be named from elsewhere.", "Send the settings themselves.")
    if "prior" in named and str(named["prior"]) not in shipped_weights():
        raise ConfigError(
            113, "weights files cannot be named from elsewhere.", f"Shipped are: {', '.join(shipped_weights())}."
        )


def _order(found: int, expected: str) -> Exception:
    what = "the scan ended" if found == CLOSE else f"a message of id {found} came"
    return broken(406, f"{what} where {expected} was expected.", "First the configuration, then the header, then data.")
