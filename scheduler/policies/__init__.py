"""Fairness policies: which flow goes next; each public file but base is one."""
