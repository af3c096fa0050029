"""The subject: a small GPT and its training recipe, the only source that an agent may edit."""
