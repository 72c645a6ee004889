"""What is done with models and data outside of a run: load what was trained, let several answer, predict files, look
into them. The top floor: no other room of training knows it.
"""
