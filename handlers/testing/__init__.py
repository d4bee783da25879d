"""Stand-ins for what is too large, or too secret, to have in a test."""
