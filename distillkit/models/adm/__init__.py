"""ADM and improved DDPM: U-Nets of pixels in guided-diffusion's layout (Dhariwal & Nichol 2021, arXiv 2105.05233)."""
