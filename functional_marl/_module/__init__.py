"""One agent's module: its description, its initialization, and its call with parameters from outside."""
