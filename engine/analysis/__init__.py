"""Analysis of a network: gates, attention maps, parameters, speed, export."""
