"""Making images: the generator protocol, the OpenAI generator, and the offline one."""
