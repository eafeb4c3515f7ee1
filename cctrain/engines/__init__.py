"""The libraries that train, one file each: the only files that import them."""
