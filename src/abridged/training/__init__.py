"""The training loop, its settings, its workspace on disk and what a teacher hands to a student."""
