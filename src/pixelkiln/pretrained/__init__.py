"""Pretrained text-to-image pipelines through diffusers and transformers (extra `pretrained`): chosen, pinned, run and recorded.

What diffusers can do is done by it; here is what it leaves to the user: safetensors only, a pinned revision, one generator an image, settings that
fit the memory, prompts with weights and of any length, walks between prompts, pixels that stay as they are, and a recipe in every image.
"""

__all__: list[str] = []
