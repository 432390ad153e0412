"""Coded errors: what is wrong, where, the limit, and how to mend it.

Families (the first digit is the family, `product.md` 2 maps families to exit codes):

=====  ==========================================  =========
code   what                                        exit code
=====  ==========================================  =========
E1xx   settings and weights (`ConfigError`)        2
E2xx   scan header (`HeaderError`)                 3
E3xx   acquisition data (`DataError`)              3
E4xx   transport (`TransportError`)                4
E5xx   computing (`ComputeError`)                  5
E6xx   output (`OutputError`)                      6
=====  ==========================================  =========
"""

from __future__ import annotations


class PogmdmError(Exception):
    """Base of every error this software raises on purpose.

    Parameters
    ----------
    code
        Number within the family, e.g. 214; shown as ``E214``.
    message
        What is wrong and where, with the value found and the limit. Never patient data.
    hint
        How to mend it (a command, a setting), or an empty string.
    """

    exit_code = 5

    def __init__(self, code: int, message: str, hint: str = "") -> None:
        self.code = code
        self.message = message
        self.hint = hint
        super().__init__(f"E{code} {message}" + (f" {hint}" if hint else ""))


class ConfigError(PogmdmError):
    """Settings, presets or weights are wrong (E1xx)."""

    exit_code = 2


class HeaderError(PogmdmError):
    """The scan's header cannot be used (E2xx)."""

    exit_code = 3


class DataError(PogmdmError):
    """The acquired data cannot be used (E3xx)."""

    exit_code = 3


class TransportError(PogmdmError):
    """The stream or the socket broke (E4xx)."""

    exit_code = 4


class ComputeError(PogmdmError):
    """The computation failed (E5xx)."""

    exit_code = 5


class OutputError(PogmdmError):
    """Results cannot be written or represented (E6xx)."""

    exit_code = 6
