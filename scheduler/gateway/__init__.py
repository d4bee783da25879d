"""The front door: parses requests, admits them, and speaks every protocol clients have."""
