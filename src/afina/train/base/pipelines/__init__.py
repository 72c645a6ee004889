"""Pipelines of diffusers: folders of several models that make images together."""
