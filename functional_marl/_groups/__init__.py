"""Groups of agents: who is in which group, and data by group."""
