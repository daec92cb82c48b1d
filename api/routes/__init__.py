"""Endpoints: parse, one call, return."""
