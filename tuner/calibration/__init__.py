"""Readers of published silicon measurements, and the fit of operator curves to them."""
