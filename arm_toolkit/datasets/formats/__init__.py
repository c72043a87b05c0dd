"""Recognises the trees in which people keep annotated images, and rewrites what training does not read as it is."""
