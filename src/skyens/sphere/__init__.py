"""sphere."""
