"""Images: folders and splits, decoding, data sets that package registries carry."""
