"""The text encoders of diffusers pipelines: texts to conditions, as the pipelines' `encode_prompt` does it."""
