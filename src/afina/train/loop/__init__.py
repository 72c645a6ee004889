"""A run from its recipe to its folder: planned, adapted, trained, guarded, measured and saved. It knows tasks by their
contract alone.
"""
