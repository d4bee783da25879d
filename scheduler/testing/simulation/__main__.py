"""Run many seeds, on every core, and say in one line what came of it."""
