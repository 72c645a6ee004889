"""Spans of a text: entities in tags, answers in a passage, and how well either is found."""
