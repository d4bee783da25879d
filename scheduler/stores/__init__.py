"""Stores: the only durable state; each public file but base is one."""
