"""What a monitor costs the process that generates: the variants, and how they are measured."""
