"""Drills for alert delivery: a real broker that is killed, hung and brought back."""
