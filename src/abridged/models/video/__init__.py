"""Models of videos and texts: LiteVL, made of an image-text model, and dual encoders on stock ones."""
