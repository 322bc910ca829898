"""Where inputs and outputs carry the agent axis."""
