"""A model's life in MLflow: the bundle on disk, the run that made it, the registered name it is found by.

Nothing here is imported ahead of need: ``registry.bundle`` starts without MLflow, ``registry.catalogue`` without the
model code.
"""
