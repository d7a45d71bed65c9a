"""Where the monitor meets serving stacks; each folder holds what one of them needs."""
