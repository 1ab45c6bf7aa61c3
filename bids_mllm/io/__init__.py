"""The only code that opens data files: images, films, derivatives, atlases and the feature store."""
