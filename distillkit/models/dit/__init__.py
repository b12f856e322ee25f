"""DiT and SiT: transformers of latents in the layout of their own code (Peebles & Xie 2023, arXiv 2212.09748; Ma et al.
2024, arXiv 2401.08740)."""
