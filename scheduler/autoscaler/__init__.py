"""Decides how many replicas there should be, and repairs what drifted."""
