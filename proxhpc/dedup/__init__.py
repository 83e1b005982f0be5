"""Near-duplicates: shingles, MinHash, bands, external sorting, clusters."""
