"""What every benchmark shares: the machine, the claims, how a script ends."""
