"""A run as one HTML page: typed data in, one self-contained file out."""
