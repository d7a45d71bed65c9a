from hypothesis import settings

# No timed assertions: the machine may be busy with other work.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
