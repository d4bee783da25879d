"""Engines: what runs a model inside a worker; each public file but base is one."""
