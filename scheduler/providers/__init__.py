"""Who rents us containers; a file is a provider."""
