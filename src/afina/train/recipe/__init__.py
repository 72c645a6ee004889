"""The typed settings of a run, and how they are read, written, made ready and compared. It knows methods' configs and
tasks by name, but no rows and no model.
"""
