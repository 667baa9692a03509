"""Videos as data: pictures by time stamp, clips with captions or questions, published layouts, a cache of frames."""
