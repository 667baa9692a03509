"""The ground floor: settings and recipes as text, errors, progress, hardware. Nothing here imports torch at import."""
