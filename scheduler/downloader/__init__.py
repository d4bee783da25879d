"""Fetches models' files to this machine, in the background, before anything is loaded."""
