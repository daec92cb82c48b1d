"""Talking to servers over HTTP: the control plane's client, and a load target."""
