"""Kinds of text files, each read into numbered rows. Knows errors alone."""
