"""Pictures made of images: grids with captions, animations, PNG files that tell how they were made.

Nothing here needs torch or matplotlib.
"""
