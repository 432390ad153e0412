"""Bytes in, messages out: Gadgetron's wire protocol, with limits. Nothing here knows what a scan is."""
