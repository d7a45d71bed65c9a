"""The rule engine's matching beside the plain loop over every pattern."""
