"""Models by name: loading them, and making new ones."""
