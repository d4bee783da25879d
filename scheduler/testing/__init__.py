"""Doubles and builders for tests of Plait and of what is built on it."""
