"""Groups to numbers: the one scorer."""
