"""What a network does and costs: gates, attention maps, parameters, speed, export."""
