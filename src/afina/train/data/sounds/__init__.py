"""Sounds: read from files, and spoken by a program where a data set is to be made."""
