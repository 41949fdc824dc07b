"""The world in which the built-in model mini is trained and evaluated; not part of the package."""
