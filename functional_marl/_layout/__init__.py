"""Where inputs and outputs carry the agents."""
