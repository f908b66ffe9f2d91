"""Settings of the whole suite."""

from hypothesis import settings

# The same examples on every machine: a sabotage that is noticed here is noticed everywhere.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
