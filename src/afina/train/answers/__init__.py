"""What a living model says to texts, in batches, and how right that is. It knows rendered texts and token ids, but no
task and no run.
"""
