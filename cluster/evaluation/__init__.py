"""Systems compared on a data set at rest: splits, passes, full ranking, significance; one cell per system and seed."""
