"""Measurements of the product, run by hand or in CI; not part of the installed packages."""
