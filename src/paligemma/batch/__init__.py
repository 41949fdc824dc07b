"""Jobs over many images: a journal that survives interruption, and outputs derived from it."""
