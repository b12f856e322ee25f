"""EDM2's networks (Karras et al. 2024, arXiv 2312.02696): magnitude-preserving layers, forced weight normalisation."""
