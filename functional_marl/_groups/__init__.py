"""Groups of agents: which agents form which group, data by group, and one network for each group."""
