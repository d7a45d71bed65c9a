"""The quality table of a pair: its bounds, what is measured, how it is shown."""
