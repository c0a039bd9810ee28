"""Importable from the root of the repository, before any other package of this name."""
