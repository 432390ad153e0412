"""Scans and images on disk: complete or not there at all."""
