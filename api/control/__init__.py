"""The live controller: heartbeats in, policies out."""
