"""Hands leases to the runners that ask, takes back what they lose."""
