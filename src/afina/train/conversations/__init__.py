"""Conversations: messages as people have them, the chat template that writes them, and what a model has to answer."""
