"""diffusers' networks as denoisers, from pipeline folders and hub repositories."""
